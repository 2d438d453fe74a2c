#include "executable.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "copies.h"
#include "op_kinds.h"
#include "recorder.h"

namespace graphmode {

namespace {

at::Tensor tensor_over(const c10::Storage& storage, const Value& v) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), v.keys, v.dtype);
  impl->set_sizes_and_strides(v.sizes, v.strides);
  impl->set_storage_offset(v.offset);
  return at::Tensor(std::move(impl));
}

c10::Storage empty_storage(size_t nbytes) {
  return c10::Storage(c10::Storage::use_byte_size_t(), nbytes, at::DataPtr(nullptr, at::kCPU), nullptr, false);
}

void set_autocast(int8_t dtype) {
  at::autocast::set_autocast_enabled(at::kCPU, dtype >= 0);
  if (dtype >= 0) {
    at::autocast::set_autocast_dtype(at::kCPU, static_cast<at::ScalarType>(dtype));
  }
}

// Kernels that call other ops see the autocast mode of the capture; the caller's own comes back at the end.
class Autocast {
 public:
  explicit Autocast(int8_t* now)
      : enabled_(at::autocast::is_autocast_enabled(at::kCPU)),
        dtype_(at::autocast::get_autocast_dtype(at::kCPU)),
        was_(enabled_ ? static_cast<int8_t>(dtype_) : int8_t{-1}),
        now_(now) {
    *now_ = was_;
  }
  ~Autocast() {
    if (*now_ != was_) {
      at::autocast::set_autocast_enabled(at::kCPU, enabled_);
      at::autocast::set_autocast_dtype(at::kCPU, dtype_);
    }
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  bool enabled_;
  at::ScalarType dtype_;
  int8_t was_;
  int8_t* now_;
};

void spoil(void* p, size_t n) {
  std::memset(p, 0xFF, n);  // not-a-number in every floating dtype
}

}  // namespace

struct Patch {
  at::TensorIteratorBase* iterator;
  int operand;
  std::ptrdiff_t offset;
};

struct Slot {  // one buffer of an instance
  c10::Storage storage;
  char* bound = nullptr;
  std::vector<Patch> patches;

  void bind(void* p) {
    if (p == bound) {
      return;
    }
    bound = static_cast<char*>(p);
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(at::DataPtr(p, at::kCPU));
    for (const auto& patch : patches) {
      patch.iterator->unsafe_replace_operand(patch.operand, bound + patch.offset);
    }
  }
};

// Address space for as long as an instance is built; it takes no memory.
class AddressRange {
 public:
  explicit AddressRange(const std::vector<Buffer>& buffers) {
    for (const auto& b : buffers) {
      bytes_ += padded(b.nbytes);
    }
    bytes_ = std::max<size_t>(bytes_, 64);
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(p != MAP_FAILED, "no address space for ", bytes_, " bytes");
    base_ = next_ = static_cast<char*>(p);
  }
  ~AddressRange() {
    munmap(base_, bytes_);
  }
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;
  char* take(size_t nbytes) {
    char* p = next_;
    next_ += padded(nbytes);
    return p;
  }

 private:
  static size_t padded(size_t n) {
    return (n + 127) / 64 * 64;
  }
  size_t bytes_ = 0;
  char* base_;
  char* next_;
};

struct Step {
  int node;
  Tier tier;
  Kernel* kernel = nullptr;  // Tier::Held
  std::unique_ptr<Kernel> owned;
  std::optional<c10::OperatorHandle> op;
  c10::DispatchKeySet keys;  // where to redispatch; empty: by the arguments
  std::vector<c10::IValue> args;
  std::vector<TensorRef> from_call;  // arguments that come from boxed values or as the call gave them
  std::vector<int> lists;            // arguments that are lists of tensors
  std::vector<TensorRef> out;
  std::vector<int> release;  // adopted buffers whose last use this is
  bool waits = false;        // the results are not there yet when the call returns
  int pending = -1;          // a wait for an input, which may have been computed by a collective outside
  bool adopts = false;
  bool copies = false;  // the results are new memory, and go where the plan has them
  int8_t autocast = -1;
};

class Instance {
 public:
  Instance(const Plan& plan, bool poison) : plan_(plan), t_(*plan.tape), poison_(poison) {
    slots_.resize(t_.buffers.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      const auto& b = t_.buffers[i];
      slots_[i].storage = b.kind == BufferKind::Fixed ? b.fixed : empty_storage(b.nbytes);
      if (b.kind == BufferKind::Fixed) {
        slots_[i].bound = static_cast<char*>(b.fixed.mutable_data());
        fixed_.push_back(&slots_[i]);
      }
    }
    // Iterators read addresses when they are built: each buffer gets a range of its own, of memory that is never
    // touched.
    AddressRange stand_in(t_.buffers);
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (t_.buffers[i].kind != BufferKind::Fixed) {
        slots_[i].bind(stand_in.take(t_.buffers[i].nbytes));
      }
    }
    for (size_t i = 0; i < t_.inputs.size(); ++i) {
      if (t_.inputs[i] >= 0) {
        const auto& v = t_.values[t_.inputs[i]];
        if (t_.buffers[v.buffer].input == static_cast<int>(i)) {
          bindings_.push_back(
              {static_cast<int>(i), v.buffer, v.offset * static_cast<std::ptrdiff_t>(v.dtype.itemsize())});
        }
      }
    }
    for (size_t i = 0; i < t_.buffers.size(); ++i) {
      if (t_.buffers[i].kind == BufferKind::Output && !t_.buffers[i].adopted) {
        fresh_.push_back(static_cast<int>(i));
      }
    }
    values_.resize(t_.values.size());
    boxed_.resize(t_.boxed);
    adopted_.resize(t_.buffers.size());
    steps_.reserve(t_.nodes.size());
    auto chain = plan_.chains.begin();
    for (size_t i = 0; i < t_.nodes.size(); ++i) {
      const auto node = static_cast<int>(i);
      if (chain == plan_.chains.end() || node < chain->begin) {
        add_step(node);
        order_.push_back(node);
        continue;
      }
      steps_.emplace_back();
      steps_.back().node = node;
      if (node == chain->end) {
        add_chain(*chain, steps_.back());
        order_.push_back(node);
        ++chain;
      }
    }
    for (size_t i = 0; i < t_.buffers.size(); ++i) {
      const auto& b = t_.buffers[i];
      if (b.adopted && b.kind == BufferKind::Temp && b.last >= 0 && b.last < static_cast<int>(steps_.size())) {
        steps_[b.last].release.push_back(static_cast<int>(i));
      }
    }
    for (auto& slot : slots_) {
      if (slot.bound != nullptr && !is_fixed(slot)) {
        slot.bound = nullptr;  // the stand-ins die here: whatever is not bound again must fail, not read them
        slot.storage.unsafeGetStorageImpl()->set_data_ptr_noswap(at::DataPtr(nullptr, at::kCPU));
      }
    }
  }

  std::atomic<bool> busy{false};

  std::vector<at::Tensor> run(at::ArrayRef<const at::Tensor*> inputs, const char* const* first, int until) {
    check_fixed();
    given_ = inputs;
    struct Forget {
      Instance* i;
      ~Forget() {
        i->forget();
      }
    } forget{this};
    for (const auto& b : bindings_) {
      slots_[b.slot].bind(const_cast<char*>(first[b.input]) - b.distance);
    }
    std::optional<Lease> lease;
    if (plan_.arena_bytes > 0) {
      lease.emplace(plan_.arena_bytes);
      bind_arena(*lease);
    }
    bind_outputs();
    const int end = until < 0 ? static_cast<int>(steps_.size()) : until;
    int i = 0;
    try {
      at::AutoDispatchBelowADInplaceOrView below;
      at::NoGradGuard no_grad;
      Autocast as_before(&autocast_);
      for (const int at : order_) {
        if (at >= end) {
          break;
        }
        i = at;
        execute(steps_[i]);
      }
    } catch (Diverged& d) {
      bump_versions(inputs, i);
      collect(d, inputs);
      throw;
    } catch (...) {
      bump_versions(inputs, i);
      throw;
    }
    bump_versions(inputs, end);
    return make_outputs(plan_, inputs, adopted_, boxed_);
  }

 private:
  bool is_fixed(const Slot& slot) const {
    return t_.buffers[&slot - slots_.data()].kind == BufferKind::Fixed;
  }

  const at::Tensor& held_value(int id) {
    auto& t = values_[id];
    if (!t.defined()) {
      t = tensor_over(slots_[t_.values[id].buffer].storage, t_.values[id]);
    }
    return t;
  }

  void add_step(int index) {
    const auto& node = t_.nodes[index];
    steps_.emplace_back();
    auto& s = steps_.back();
    s.node = index;
    s.tier = node.tier;
    s.op = node.op;
    s.out = node.out;
    if (node.kind == NodeKind::Lift) {
      auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
      s.op = copy;
      s.args = {held_value(node.out[0].value), node.args[0], false};
      s.keys = c10::DispatchKeySet(c10::DispatchKey::CPU);
      s.tier = Tier::Boxed;
      s.out.clear();
      return;
    }
    s.autocast = node.autocast;
    s.waits = goes_on(full_name(node.op));
    if (full_name(node.op) == "_c10d_functional::wait_tensor" && node.in.front().value >= 0) {
      s.pending = t_.buffers[t_.values[node.in.front().value].buffer].input;
    }
    s.args.reserve(node.args.size());
    for (const auto& a : node.args) {
      const bool tensors = a.isList() && !a.isIntList() && !a.isDoubleList() && !a.isBoolList();
      if (tensors) {
        s.lists.push_back(static_cast<int>(s.args.size()));
      }
      s.args.push_back(tensors ? c10::IValue(a.toList().copy()) : a);  // items are set per instance
    }
    bool math_bits = false, any_plain = false;
    for (const auto& ref : node.in) {
      if (ref.boxed >= 0 || ref.given >= 0) {
        s.from_call.push_back(ref);
        math_bits = math_bits || ref.boxed >= 0;
        any_plain = any_plain || ref.given >= 0;
        continue;
      }
      const auto& t = held_value(ref.value);
      any_plain = true;
      math_bits = math_bits || t.is_conj() || t.is_neg();
      if (ref.item < 0) {
        s.args[ref.arg] = t;
      } else {
        s.args[ref.arg].toList().set(ref.item, t);
      }
    }
    if (any_plain && !math_bits) {
      s.keys = c10::DispatchKeySet(c10::DispatchKey::CPU);
    }
    std::vector<at::Tensor> outs;
    for (const auto& ref : node.out) {
      if (ref.value >= 0 && node.tier != Tier::Boxed) {
        outs.push_back(held_value(ref.value));
      }
    }
    if (node.tier == Tier::Held) {
      const auto& entry = held_ops().at(node.held);
      const bool writes = std::find(node.writes.begin(), node.writes.end(), true) != node.writes.end();
      const auto taken = s.args.size() - (writes && !entry.inplace_self ? entry.outputs : 0);
      try {
        s.owned = entry.make(c10::ArrayRef<c10::IValue>(s.args.data(), taken), outs);
        s.kernel = s.owned.get();
        patch(s.kernel->iterator());
        s.args.clear();
      } catch (const NotHoldable&) {  // proved on copies, which no longer stand to each other as these do
        s.tier = Tier::Boxed;
        s.copies = !writes;
      }
    } else if (node.tier == Tier::Out) {
      s.op = *node.out_op;
      for (auto& o : outs) {
        s.args.emplace_back(o);
      }
    } else {
      for (const auto& ref : node.out) {
        s.adopts = s.adopts || ref.boxed >= 0 || made_here(ref, index);
      }
    }
  }

  void add_chain(const RowChain& chain, Step& s) {
    std::vector<at::Tensor> tensors;
    for (int value : chain.places) {
      tensors.push_back(held_value(value));
    }
    s.tier = Tier::Held;
    s.owned = make_row_kernel(chain.program, std::move(tensors));
    s.kernel = s.owned.get();
  }

  bool made_here(const TensorRef& ref, int index) const {
    if (ref.value < 0) {
      return false;
    }
    const auto& b = t_.buffers[t_.values[ref.value].buffer];
    return b.adopted && b.made_by == index;  // else memory the graph has already: a view or a written argument
  }

  // Operands are found by address (see storage_at in prove.cpp): while building, each buffer has a range of its own.
  void patch(at::TensorIteratorBase* it) {
    for (int i = 0; it != nullptr && it->numel() > 0 && i < it->ntensors(); ++i) {
      const auto& operand = it->operand(i);
      if (operand.original_tensor_base().defined()) {
        continue;  // a converted constant: it stays where the iterator put it
      }
      auto* p = static_cast<char*>(operand.data);
      for (size_t b = 0; b < slots_.size(); ++b) {
        auto& slot = slots_[b];
        if (slot.bound != nullptr && slot.bound <= p && p < slot.bound + t_.buffers[b].nbytes) {
          slot.patches.push_back({it, i, p - slot.bound});
          break;
        }
      }  // none: a Python scalar in a tensor's place, which the node holds
    }
  }

  void check_fixed() const {
    for (const Slot* slot : fixed_) {
      if (slot->storage.data() != slot->bound) {
        throw Moved("memory that the graph reads or writes was moved since the capture: capture again");
      }
    }
    for (size_t i = 0; i < t_.met.size(); ++i) {
      const auto& met = t_.met[i];
      if (!met.alive()) {
        continue;
      }
      const auto& v = t_.values[met.value];
      auto* t = met.raw;
      if (t->unsafe_storage().unsafeGetStorageImpl() != t_.buffers[v.buffer].fixed.unsafeGetStorageImpl()) {
        throw Moved("a captured tensor of sizes " + c10::str(t->sizes()) + " has other memory now: capture again");
      }
      if (!met.inside && (t->sizes() != c10::IntArrayRef(v.sizes) || t->strides() != c10::IntArrayRef(v.strides) ||
                          t->storage_offset() != v.offset || t->dtype() != v.dtype)) {
        throw Moved(c10::str("a captured tensor had sizes ", c10::IntArrayRef(v.sizes), ", strides ",
                             c10::IntArrayRef(v.strides), " and dtype ", v.dtype.name(), ", and has ", t->sizes(), ", ",
                             t->strides(), " and ", t->dtype().name(), " now: capture again"));
      }
      TORCH_CHECK(
          !t->is_inference() || plan_.met_written_from[i] == static_cast<int>(steps_.size()) ||
              c10::InferenceMode::is_enabled(),
          "Inplace update to inference tensor outside InferenceMode is not allowed: the graph writes one that it "
          "was captured on");
    }
  }

  // Kernels are called below the key that would do it. `ran`: the last node that may have written.
  void bump_versions(at::ArrayRef<const at::Tensor*> inputs, int ran) const {
    const auto bump = [](c10::TensorImpl* t) {
      if (!t->is_inference()) {
        t->bump_version();
      }
    };
    for (size_t k = 0; k < plan_.mutated_inputs.size(); ++k) {
      if (plan_.mutated_from[k] <= ran) {
        bump(inputs[plan_.mutated_inputs[k]]->unsafeGetTensorImpl());
      }
    }
    for (size_t k = 0; k < t_.met.size(); ++k) {
      if (plan_.met_written_from[k] <= ran && plan_.met_written_from[k] < static_cast<int>(steps_.size()) &&
          t_.met[k].alive()) {
        bump(t_.met[k].raw);
      }
    }
  }

  // What the rest of the program needs, while this replay's memory still holds it.
  void collect(Diverged& d, at::ArrayRef<const at::Tensor*> inputs) {
    if (!plan_.needs) {
      return;
    }
    const auto [values, boxed] = plan_.needs(d.position);
    std::unordered_map<int, c10::Storage> copied;  // the arena is the next replay's
    for (int id : values) {
      const auto& v = t_.values[id];
      const auto& b = t_.buffers[v.buffer];
      if (b.kind == BufferKind::Input) {
        d.values.emplace_back(id, over_input(t_, v, *inputs[b.input]));
        continue;
      }
      auto storage = b.kind == BufferKind::Fixed ? b.fixed : adopted_[v.buffer];
      if (!storage) {
        auto& copy = copied[v.buffer];
        if (!copy) {
          auto* allocator = c10::GetCPUAllocator();
          copy =
              c10::Storage(c10::Storage::use_byte_size_t(), b.nbytes, allocator->allocate(b.nbytes), allocator, true);
          if (b.nbytes > 0 && plan_.offsets[v.buffer] >= 0) {  // else it is dead: only its size is asked for
            std::memcpy(copy.mutable_data(), slots_[v.buffer].bound, b.nbytes);
          }
        }
        storage = copy;
      }
      d.values.emplace_back(id, tensor_over(storage, v));
    }
    for (int id : boxed) {
      d.boxed.emplace_back(id, boxed_[id].isTensor() ? boxed_[id].toTensor() : at::Tensor());
    }
  }

  void bind_arena(const Lease& lease) {
    if (poison_) {
      spoil(lease.base(), plan_.arena_bytes);
    }
    if (arena_serial_ == lease.serial()) {
      return;
    }
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (plan_.offsets[i] >= 0) {
        slots_[i].bind(lease.base() + plan_.offsets[i]);
      }
    }
    arena_serial_ = lease.serial();
  }

  void bind_outputs() {
    for (int i : fresh_) {
      auto* allocator = c10::GetCPUAllocator();
      const auto nbytes = t_.buffers[i].nbytes;
      c10::Storage storage(c10::Storage::use_byte_size_t(), nbytes, allocator->allocate(nbytes), allocator, true);
      if (poison_ && nbytes > 0) {
        spoil(storage.mutable_data(), nbytes);
      }
      slots_[i].bind(storage.mutable_data());
      adopted_[i] = std::move(storage);
    }
  }

  void execute(Step& s) {
    if (s.kernel != nullptr) {
      s.kernel->run();
    } else {
      stack_.assign(s.args.begin(), s.args.end());
      for (int i : s.lists) {
        stack_[i] = stack_[i].toList().copy();  // some kernels set items of the list they are given
      }
      for (const auto& ref : s.from_call) {
        const auto value = ref.boxed >= 0 ? boxed_[ref.boxed] : c10::IValue(*given_[static_cast<size_t>(ref.given)]);
        if (ref.item < 0) {
          stack_[ref.arg] = value;
        } else {
          stack_[ref.arg].toList().set(ref.item, value);
        }
      }
      if (s.pending >= 0) {
        wait({*given_[static_cast<size_t>(s.pending)]});
      }
      if (s.autocast != autocast_) {
        set_autocast(s.autocast);
        autocast_ = s.autocast;
      }
      if (s.keys.empty()) {
        s.op->callBoxed(stack_);
      } else {
        s.op->redispatchBoxed(s.keys, &stack_);
      }
      if (s.waits) {
        wait(tensors_of(stack_));
      }
      if (s.adopts) {
        adopt(s);
      } else if (s.copies) {
        copy_results(s);
      }
      stack_.clear();
    }
    for (int b : s.release) {
      adopted_[b] = c10::Storage();
    }
  }

  // The recorded wait would look for the storages of these tensors, and those that a replay holds have their own.
  static void wait(const std::vector<at::Tensor>& tensors) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("_c10d_functional::wait_tensor", "")
                               .typed<at::Tensor(const at::Tensor&)>();
    for (const auto& t : tensors) {
      op.call(t);
    }
  }

  void adopt(Step& s) {
    for (const auto& ref : s.out) {
      const auto& result = ref.item < 0 ? stack_[ref.arg] : item_of(stack_[ref.arg], ref.item);
      if (ref.boxed >= 0) {
        boxed_[ref.boxed] = result;
        continue;
      }
      if (!made_here(ref, s.node)) {
        continue;
      }
      const auto& v = t_.values[ref.value];
      const auto& r = result.toTensor();
      if (r.sizes() != c10::IntArrayRef(v.sizes) || r.strides() != c10::IntArrayRef(v.strides) ||
          r.dtype() != v.dtype || r.storage_offset() != v.offset || !is_plain(r)) {
        Diverged d(s.node, t_.nodes[s.node].position, c10::toString(t_.nodes[s.node].op.operator_name()),
                   c10::str(t_.nodes[s.node].op.operator_name(), " gave a tensor of sizes ", r.sizes(), " and strides ",
                            r.strides(), " where the capture saw ", c10::IntArrayRef(v.sizes), " and ",
                            c10::IntArrayRef(v.strides)));
        d.results = stack_;
        throw d;
      }
      if (t_.buffers[v.buffer].kind == BufferKind::Fixed) {
        held_value(ref.value).copy_(r);  // a raw graph's output: its address is the caller's to rely on
        continue;
      }
      adopted_[v.buffer] = r.storage();
      slots_[v.buffer].bind(const_cast<void*>(r.storage().data()));
    }
  }

  void copy_results(Step& s) {
    for (const auto& ref : s.out) {
      if (ref.value >= 0) {
        held_value(ref.value).copy_((ref.item < 0 ? stack_[ref.arg] : item_of(stack_[ref.arg], ref.item)).toTensor());
      }
    }
  }

  static c10::IValue item_of(const c10::IValue& list, int i) {
    return list.toListRef()[i];
  }

  void forget() {
    stack_.clear();
    for (size_t i = 0; i < adopted_.size(); ++i) {
      if (adopted_[i]) {
        adopted_[i] = c10::Storage();
      }
    }
    for (auto& b : boxed_) {
      b = c10::IValue();
    }
  }

  const Plan& plan_;
  Tape& t_;
  bool poison_;
  std::vector<Slot> slots_;
  std::vector<at::Tensor> values_;
  std::vector<c10::IValue> boxed_;
  std::vector<c10::Storage> adopted_;  // memory of this replay: what kernels made, and the outputs
  struct Binding {                     // of an input to its buffer
    int input, slot;
    std::ptrdiff_t distance;  // bytes from the buffer's start to the input's first element
  };
  std::vector<Binding> bindings_;
  std::vector<int> fresh_;  // buffers that get new memory at each replay
  std::vector<const Slot*> fixed_;
  std::vector<Step> steps_;  // one per node
  std::vector<int> order_;   // those that run: of a chain, the last
  torch::jit::Stack stack_;
  at::ArrayRef<const at::Tensor*> given_;  // this call's inputs
  int8_t autocast_ = -1;                   // as it is set while the steps run
  uint64_t arena_serial_ = 0;
};

Executable::Executable(std::shared_ptr<Plan> plan, bool poison)
    : plan_(std::move(plan)), need_(plan_->arena_bytes), poison_(poison) {
  all_.push_back(std::make_unique<Instance>(*plan_, poison_));
}
Executable::~Executable() = default;

size_t Executable::instances() {
  std::lock_guard<std::mutex> guard(mutex_);
  return all_.size();
}

namespace {
// How often this process, or one it descends from, was forked on the way here; from 1, so that 0 is never.
std::atomic<uint32_t>& forks() {
  static std::atomic<uint32_t> count{1};
  return count;
}
const int counting = pthread_atfork(nullptr, nullptr, [] { ++forks(); });
}  // namespace

// OpenMP's threads stay in the parent, and a child that calls on them waits for ever, in eager as well.
void Executable::check_fork() {
  if (!plan_->splits_work || at::get_num_threads() == 1) {
    return;
  }
  const auto now = forks().load(std::memory_order_relaxed);
  const auto before = forks_.exchange(now, std::memory_order_relaxed);
  if (before != 0 && before != now) {
    forks_ = before;
    throw Forked(
        "this process was forked after the graph had run on several threads, which stayed in the parent: call "
        "torch.set_num_threads(1) in the child, or start it with multiprocessing's \"spawn\"");
  }
}

std::vector<at::Tensor> Executable::run_until(at::ArrayRef<const at::Tensor*> inputs, const char* const* first,
                                              int until) {
  check_fork();
  Instance* mine = nullptr;
  {
    std::lock_guard<std::mutex> guard(mutex_);
    for (auto& instance : all_) {
      if (!instance->busy.exchange(true)) {
        mine = instance.get();
        break;
      }
    }
    if (mine == nullptr) {  // re-entry, or another thread is inside: it gets an instance and an arena of its own
      RecordingOff off;
      at::AutoDispatchBelowADInplaceOrView below;
      all_.push_back(std::make_unique<Instance>(*plan_, poison_));
      mine = all_.back().get();
      mine->busy = true;
    }
  }
  struct Release {
    Instance* i;
    ~Release() {
      i->busy = false;
    }
  } release{mine};
  return mine->run(inputs, first, until);
}

}  // namespace graphmode
