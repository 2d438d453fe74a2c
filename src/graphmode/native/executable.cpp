#include "executable.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "recorder.h"

namespace graphmode {

namespace {

std::pair<int64_t, int64_t> extent_bytes(const Value& v) {
  int64_t last = 0;
  for (size_t d = 0; d < v.sizes.size(); ++d) {
    if (v.sizes[d] == 0) {
      return {v.offset, v.offset};
    }
    last += (v.sizes[d] - 1) * v.strides[d];
  }
  const auto item = static_cast<int64_t>(v.dtype.itemsize());
  return {v.offset * item, (v.offset + last + 1) * item};
}

at::Tensor tensor_over(const c10::Storage& storage, const Value& v) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), v.keys, v.dtype);
  impl->set_sizes_and_strides(v.sizes, v.strides);
  impl->set_storage_offset(v.offset);
  return at::Tensor(std::move(impl));
}

c10::Storage empty_storage(size_t nbytes) {
  return c10::Storage(c10::Storage::use_byte_size_t(), nbytes, at::DataPtr(nullptr, at::kCPU), nullptr, false);
}

void spoil(void* p, size_t n) {
  std::memset(p, 0xFF, n);  // not-a-number in every floating dtype
}

}  // namespace

std::shared_ptr<Plan> make_plan(std::shared_ptr<Tape> tape, std::vector<OutputRef> outputs) {
  auto plan = std::make_shared<Plan>();
  auto& t = *tape;
  const int end = static_cast<int>(t.nodes.size());
  for (const auto& out : outputs) {
    if (out.value >= 0) {
      auto& b = t.buffers[t.values[out.value].buffer];
      b.last = end;
      if (b.kind == BufferKind::Temp) {
        b.kind = BufferKind::Output;
        if (!b.written && b.nbytes > 0 && t.refusal.empty()) {
          t.refusal = "an output is memory that no recorded call has written";
        }
      }
    }
  }
  plan->offsets.assign(t.buffers.size(), -1);
  std::vector<Lifetime> lifetimes;
  std::vector<int> which;
  for (size_t i = 0; i < t.buffers.size(); ++i) {
    auto& b = t.buffers[i];
    if (b.kind == BufferKind::Temp && !b.adopted) {
      lifetimes.push_back({static_cast<int64_t>(b.nbytes), b.first, b.last});
      which.push_back(static_cast<int>(i));
    } else if (b.kind == BufferKind::Output) {
      plan->output_bytes += b.nbytes;
    } else if (b.kind == BufferKind::Fixed) {
      plan->fixed_bytes += b.nbytes;
    }
  }
  const auto placement = place(lifetimes);
  for (size_t i = 0; i < which.size(); ++i) {
    plan->offsets[which[i]] = placement.offsets[i];
  }
  plan->arena_bytes = static_cast<size_t>(placement.total);
  plan->input_written.assign(t.inputs.size(), false);
  plan->input_extent.assign(t.inputs.size(), {0, 0});
  std::vector<bool> buffer_written(t.buffers.size(), false);
  for (const auto& node : t.nodes) {
    for (int b : node.written_buffers) {
      buffer_written[b] = true;
    }
    switch (node.tier) {
      case Tier::Held:
        ++plan->held;
        break;
      case Tier::Out:
        ++plan->out;
        break;
      case Tier::Boxed:
        ++plan->boxed;
    }
  }
  for (size_t i = 0; i < t.inputs.size(); ++i) {
    if (t.inputs[i] < 0) {
      continue;
    }
    const auto& v = t.values[t.inputs[i]];
    if (buffer_written[v.buffer]) {
      plan->mutated_inputs.push_back(static_cast<int>(i));
      plan->input_written[i] = true;
    }
    plan->input_extent[i] = extent_bytes(v);
  }
  for (const auto& v : t.values) {
    const auto& b = t.buffers[v.buffer];
    if (b.kind == BufferKind::Input) {
      auto [lo, hi] = extent_bytes(v);
      auto& e = plan->input_extent[b.input];
      e = {std::min(e.first, lo), std::max(e.second, hi)};
    }
  }
  plan->outputs = std::move(outputs);
  plan->tape = std::move(tape);
  return plan;
}

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
  std::vector<std::pair<TensorRef, int>> boxed_in;  // arguments that come from boxed values
  std::vector<int> lists;                           // arguments that are lists of tensors
  std::vector<TensorRef> out;
  std::vector<int> release;  // adopted buffers whose last use this is
  bool adopts = false;
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
    for (size_t i = 0; i < t_.nodes.size(); ++i) {
      add_step(static_cast<int>(i));
    }
    std::vector<int> last(t_.buffers.size(), -1);
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
    for (const auto& b : bindings_) {
      slots_[b.slot].bind(const_cast<char*>(first[b.input]) - b.distance);
    }
    std::optional<Lease> lease;
    if (plan_.arena_bytes > 0) {
      lease.emplace(plan_.arena_bytes);
      bind_arena(*lease);
    }
    bind_outputs();
    check_fixed();
    {
      at::AutoDispatchBelowADInplaceOrView below;
      at::NoGradGuard no_grad;
      try {
        const int end = until < 0 ? static_cast<int>(steps_.size()) : until;
        for (int i = 0; i < end; ++i) {
          execute(steps_[i]);
        }
      } catch (...) {
        forget();
        throw;
      }
    }
    auto results = take_outputs(inputs);
    forget();
    return results;
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
      if (ref.boxed >= 0) {
        s.boxed_in.emplace_back(ref, ref.boxed);
        math_bits = true;
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
      s.owned = entry.make(c10::ArrayRef<c10::IValue>(s.args.data(), taken), outs);
      s.kernel = s.owned.get();
      patch(s.kernel->iterator());
      s.args.clear();
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
    for (const auto& met : t_.met) {
      const auto& v = t_.values[met.value];
      if (met.raw->sizes() != c10::IntArrayRef(v.sizes)) {
        throw Moved("a captured tensor had sizes " + c10::str(c10::IntArrayRef(v.sizes)) + " and has " +
                    c10::str(met.raw->sizes()) + " now: capture again");
      }
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
      for (const auto& [ref, id] : s.boxed_in) {
        if (ref.item < 0) {
          stack_[ref.arg] = boxed_[id];
        } else {
          stack_[ref.arg].toList().set(ref.item, boxed_[id]);
        }
      }
      if (s.keys.empty()) {
        s.op->callBoxed(stack_);
      } else {
        s.op->redispatchBoxed(s.keys, &stack_);
      }
      if (s.adopts) {
        adopt(s);
      }
      stack_.clear();
    }
    for (int b : s.release) {
      adopted_[b] = c10::Storage();
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
        throw Diverged(s.node, c10::toString(t_.nodes[s.node].op.operator_name()) + " gave a tensor of sizes " +
                                   c10::str(r.sizes()) + " where the capture saw " +
                                   c10::str(c10::IntArrayRef(v.sizes)));
      }
      if (t_.buffers[v.buffer].kind == BufferKind::Fixed) {
        held_value(ref.value).copy_(r);  // a raw graph's output: its address is the caller's to rely on
        continue;
      }
      adopted_[v.buffer] = r.storage();
      slots_[v.buffer].bind(const_cast<void*>(r.storage().data()));
    }
  }

  static c10::IValue item_of(const c10::IValue& list, int i) {
    return list.toListRef()[i];
  }

  std::vector<at::Tensor> take_outputs(at::ArrayRef<const at::Tensor*> inputs) {
    std::vector<at::Tensor> results;
    results.reserve(plan_.outputs.size());
    std::unordered_map<int, size_t> first_over;  // output buffer -> result whose version counter its aliases share
    for (const auto& out : plan_.outputs) {
      if (out.same_as_input >= 0) {
        results.push_back(*inputs[out.same_as_input]);
        continue;
      }
      if (out.boxed >= 0) {
        results.push_back(boxed_[out.boxed].toTensor());
        continue;
      }
      const auto& v = t_.values[out.value];
      const auto& b = t_.buffers[v.buffer];
      if (b.kind == BufferKind::Input) {
        const auto& base = *inputs[b.input];
        const auto& base_value = t_.values[t_.inputs[b.input]];
        auto impl = c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                         view_keys(base, v), v.dtype);
        impl->set_sizes_and_strides(v.sizes, v.strides);
        const auto item = static_cast<int64_t>(v.dtype.itemsize());
        impl->set_storage_offset(v.offset + (base.storage_offset() - base_value.offset) *
                                                static_cast<int64_t>(base_value.dtype.itemsize()) / item);
        if (!base.is_inference()) {
          impl->set_version_counter(base.unsafeGetTensorImpl()->version_counter());
        }
        results.emplace_back(std::move(impl));
        continue;
      }
      const auto& storage = b.kind == BufferKind::Fixed ? b.fixed : adopted_[v.buffer];
      auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), v.keys, v.dtype);
      impl->set_sizes_and_strides(v.sizes, v.strides);
      impl->set_storage_offset(v.offset);
      auto [it, fresh] = first_over.emplace(v.buffer, results.size());
      if (!fresh && !impl->is_inference()) {
        impl->set_version_counter(results[it->second].unsafeGetTensorImpl()->version_counter());
      }
      results.emplace_back(std::move(impl));
    }
    return results;
  }

  // A view has its base's keys, and math bits of its own.
  static c10::DispatchKeySet view_keys(const at::Tensor& base, const Value& v) {
    const c10::DispatchKeySet math({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
    return (base.unsafeGetTensorImpl()->key_set() - math) | (v.keys & math);
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
  std::vector<Step> steps_;
  torch::jit::Stack stack_;
  uint64_t arena_serial_ = 0;
};

Executable::Executable(std::shared_ptr<Plan> plan, bool poison) : plan_(std::move(plan)), poison_(poison) {
  all_.push_back(std::make_unique<Instance>(*plan_, poison_));
}
Executable::~Executable() = default;

size_t Executable::instances() {
  std::lock_guard<std::mutex> guard(mutex_);
  return all_.size();
}

std::vector<at::Tensor> Executable::run(at::ArrayRef<const at::Tensor*> inputs, const char* const* first, int until) {
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
