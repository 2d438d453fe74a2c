#include "recorder.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "op_kinds.h"
#include "other_threads.h"
#include "prove.h"

// The key `Fake` stands right above the backends and below everything that rewrites a call (functionalisation, lazy
// conjugation, autograd, autocast); torch registers no fall-back of its own for it. A recording thread includes it.

namespace graphmode {

namespace {
constexpr auto kKey = c10::DispatchKey::Fake;
thread_local std::shared_ptr<Tape> current;
thread_local int inside = 0;  // composites of torch's own around the running call

template <class F>
void for_each_tensor(const c10::IValue& v, F&& f) {
  if (v.isTensor()) {
    f(v.toTensor(), -1);
  } else if (v.isTensorList()) {
    int i = 0;
    for (const at::Tensor& t : v.toTensorVector()) {
      f(t, i++);
    }
  } else if (v.isList()) {
    auto list = v.toListRef();
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].isTensor()) {
        f(list[i].toTensor(), static_cast<int>(i));
      }
    }
  }
}

void find_writes(const c10::OperatorHandle& op, Node& node) {
  const auto& arguments = op.schema().arguments();
  node.writes.assign(arguments.size(), false);
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    node.writes[i] = alias != nullptr && alias->isWrite();
  }
  for (int i : undeclared_writes(op.operator_name())) {
    node.writes[i] = true;
  }
}

void refer(Tape& tape, const at::Tensor& t, int index, int arg, int item, std::vector<TensorRef>& to, bool result) {
  TensorRef ref{arg, item};
  if (const auto it = tape.given.find(t.unsafeGetTensorImpl()); !result && it != tape.given.end()) {
    ref.given = it->second;
    to.push_back(ref);
    return;
  }
  if (is_plain(t)) {
    ref.value = tape.value_of(t, index, result ? BufferKind::Temp : BufferKind::Fixed);
    auto* impl = t.unsafeGetTensorImpl();
    const bool outside = !result && tape.buffers[tape.values[ref.value].buffer].kind == BufferKind::Fixed;
    if (outside && tape.constants && tape.constants->count(t.storage().unsafeGetStorageImpl()) == 0) {
      tape.refuse("a tensor that is neither an input nor a constant of the program: a replay could not follow it");
    }
    if (!result && tape.buffers[tape.values[ref.value].buffer].kind == BufferKind::Fixed &&
        tape.met_index.emplace(impl, static_cast<int>(tape.met.size())).second) {
      if (tape.raw() && OtherThreads::made(t.storage().unsafeGetStorageImpl())) {
        tape.refuse("a tensor that another thread computed during the capture: a replay would not compute it again");
      }
      tape.met.push_back(
          {c10::weak_intrusive_ptr<c10::TensorImpl>(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(impl)), impl,
           ref.value});
    }
    if (result && tape.raw()) {
      tape.made.push_back(
          {c10::weak_intrusive_ptr<c10::TensorImpl>(c10::intrusive_ptr<c10::TensorImpl>::reclaim_copy(impl)), impl,
           ref.value});
    }
  } else {
    auto [it, fresh] = tape.boxed_by_impl.emplace(t.unsafeGetTensorImpl(), tape.boxed);
    if (fresh) {
      if (!result) {
        tape.refuse("a tensor that is no plain strided CPU tensor comes from outside the graph");
      }
      tape.boxed++;
      tape.keep.push_back(t);
    } else if (result) {
      it->second = tape.boxed++;
    }
    ref.boxed = it->second;
  }
  to.push_back(ref);
}

int8_t autocast_now() {
  return at::autocast::is_autocast_enabled(at::kCPU) ? static_cast<int8_t>(at::autocast::get_autocast_dtype(at::kCPU))
                                                     : int8_t{-1};
}

// `wanted`: an overload, or an op of which any will do.
bool calls(const std::string& wanted, const c10::OperatorHandle& op) {
  return wanted == full_name(op) || wanted == op.operator_name().name;
}

at::Generator generator_of(const std::vector<c10::IValue>& args) {
  for (const auto& a : args) {
    if (a.isGenerator()) {
      return a.toGenerator();
    }
  }
  return at::detail::getDefaultCPUGenerator();
}

Drawn* drawn_from(Tape& tape, const at::Generator& generator) {
  for (auto& d : tape.drawn) {
    if (d.generator == generator) {
      return &d;
    }
  }
  return nullptr;
}

// Seeding is no call of an op: it shows as a state that the last draw did not leave.
void check_generator(Tape& tape, const std::vector<c10::IValue>& args) {
  auto* last = drawn_from(tape, generator_of(args));
  if (last == nullptr) {
    tape.refuse(
        "a draw from a generator that the graph does not know, which the block may have seeded: call "
        "register_generator_state(generator) before the capture");
  } else if (!same_state(*last)) {
    tape.refuse("the block seeds a generator, which a replay would not do: seed it before replay() instead");
  }
}

void remember_generator(Tape& tape, const std::vector<c10::IValue>& args) {
  if (auto* last = drawn_from(tape, generator_of(args))) {
    last->state = state_of(last->generator);
  }
}

// Memory that is read must have been written by a recorded call: else something wrote it that the recorder did not see.
void check_reads(Tape& tape, const Node& node, const std::string& name) {
  for (const auto& ref : node.in) {
    if (ref.value < 0 || node.writes[ref.arg]) {
      continue;
    }
    const auto& v = tape.values[ref.value];
    const auto& b = tape.buffers[v.buffer];
    const bool empty = std::find(v.sizes.begin(), v.sizes.end(), 0) != v.sizes.end();
    const bool unread = ref.arg == 0 && ignores_self(node.op, node.args);
    if (b.kind == BufferKind::Temp && !b.written && !empty && !unread) {
      tape.refuse(name + " reads memory that no recorded call has written");
    }
  }
}

void call_below(const c10::OperatorHandle& op, c10::DispatchKeySet below, torch::jit::Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard off(kKey);
  op.redispatchBoxed(below, stack);
}

// After a call: what became of the memory it made or wrote, and whether a replay could do without the boxed call.
bool finish(Tape& tape, Node& node, const std::string& name, at::ArrayRef<c10::IValue> args,
            at::ArrayRef<c10::IValue> results) {
  const int index = static_cast<int>(tape.nodes.size());
  const auto before = tape.buffers.size();
  bool any_write = false, all_new = true;
  bool any_tensor = false;  // by type: a list of tensors may be empty
  for (const auto& r : node.op.schema().returns()) {
    any_tensor = any_tensor || r.type()->isSubtypeOf(*c10::OptionalType::ofTensor()) ||
                 r.type()->isSubtypeOf(*c10::ListType::ofTensors());
  }
  for (size_t i = 0; i < args.size(); ++i) {
    if (!node.writes[i]) {
      continue;
    }
    for_each_tensor(args[i], [&](const at::Tensor& t, int item) {
      if (!t.defined()) {
        return;
      }
      any_write = true;
      for (auto& ref : node.in) {
        if (ref.arg == static_cast<int>(i) && ref.item == item && ref.value >= 0) {
          const auto& was = tape.values[ref.value];
          const int b = was.buffer;
          if (was.sizes != t.sizes().vec() || was.strides != t.strides().vec()) {
            if (tape.buffers[b].kind != BufferKind::Temp) {
              tape.refuse(name + " changes the size of a tensor from outside the graph");
            }
            ref.value = tape.value_of(t, index, BufferKind::Fixed);  // an out= argument that the kernel resized
          }
          const auto& buffer = tape.buffers[b];
          if (buffer.kind == BufferKind::Temp && !buffer.written && t.numel() > 0 && updates(name, node.random) &&
              !ignores_self(node.op, node.args)) {
            tape.refuse(name + " reads memory that no recorded call has written");
          }
          tape.buffers[b].written = true;
          node.written_buffers.push_back(b);
        }
      }
    });
  }
  for (size_t i = 0; i < results.size(); ++i) {
    for_each_tensor(results[i], [&](const at::Tensor& t, int item) {
      if (!t.defined()) {
        return;
      }
      refer(tape, t, index, static_cast<int>(i), item, node.out, true);
      const auto& ref = node.out.back();
      all_new = all_new && ref.value >= 0 && tape.values[ref.value].buffer >= static_cast<int>(before) &&
                tape.values[ref.value].offset == 0;
    });
  }
  const bool made = tape.buffers.size() > before;
  if (!any_tensor && !results.empty() && !any_write && !reads_metadata(name)) {
    tape.refuse(name + " reads a value from a tensor on the host");
    return false;
  }
  if (!any_tensor && !results.empty() && reads_metadata(name)) {
    return false;
  }
  if (allocates(name)) {
    return false;
  }
  for (auto b = before; b < tape.buffers.size(); ++b) {
    tape.buffers[b].written = true;
  }
  bool any_boxed = false;
  for (const auto& ref : node.out) {
    any_boxed = any_boxed || ref.boxed >= 0;
  }
  if (any_tensor && !any_write && !made && !any_boxed && name.rfind("aten::", 0) == 0) {
    return false;  // a view: a held tensor over the same memory, nothing to run
  }
  // Distinct results must be distinct memory, or a planned buffer each would part them.
  std::unordered_set<int> distinct;
  for (const auto& ref : node.out) {
    if (ref.value >= 0 && !distinct.insert(tape.values[ref.value].buffer).second) {
      all_new = false;
    }
  }
  node.functional = any_tensor && !any_write && all_new;
  if (!any_write || made) {
    for (const auto& ref : node.out) {
      if (ref.value >= 0 && tape.values[ref.value].buffer >= static_cast<int>(before)) {
        tape.buffers[tape.values[ref.value].buffer].adopted = true;  // until a better tier is proved
      }
    }
  }
  return true;
}

// A constant made inside the program (torch.tensor(...)): what comes out is new memory at each call, so that a later
// write to it never reaches the pristine value.
void lift(Tape& tape, Node node, const at::Tensor& t, int index) {
  if (node.in.size() != 1 || node.in[0].value < 0) {
    return;
  }
  const int id = tape.values[node.in[0].value].buffer;
  auto& b = tape.buffers[id];
  const bool of_the_program = tape.constants && tape.constants->count(t.storage().unsafeGetStorageImpl()) != 0;
  if (b.kind != BufferKind::Fixed || of_the_program) {
    return;  // a constant of the program stays where it is: what lifts it copies it next
  }
  if (!tape.met.empty() && tape.met.back().value == node.in[0].value) {  // made inside after all
    tape.met_index.erase(tape.met.back().raw);
    tape.met.pop_back();
  }
  RecordingOff off;
  node.kind = NodeKind::Lift;
  node.args = {t.clone()};
  b.kind = BufferKind::Temp;
  b.fixed = c10::Storage();
  b.written = true;
  b.made_by = b.first = index;
  node.out = {TensorRef{0, -1, node.in[0].value}};
  node.written_buffers = {id};
  node.in.clear();
  node.line = tape.line();
  tape.nodes.push_back(std::move(node));
}

// Tensors leave the arguments: the tape keeps no memory of the run. Lists keep their type and length.
void forget_tensors(Node& node) {
  for (const auto& ref : node.in) {
    auto& arg = node.args[ref.arg];
    if (ref.item < 0) {
      arg = c10::IValue();
    } else if (ref.item >= 0) {
      auto list = arg.toList().copy();
      const bool optional = list.elementType()->kind() == c10::TypeKind::OptionalType;
      list.set(ref.item, optional ? c10::IValue() : c10::IValue(at::Tensor()));
      arg = list;
    }
  }
}

// Records the calls inside a composite; or the composite as one call, when it made or was to write memory that none of
// them wrote: then it called a kernel directly, which no dispatcher sees. A view of memory that nobody has written yet
// is none of this.
void record_inside(Tape& tape, const c10::OperatorHandle& op, c10::DispatchKeySet below, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = static_cast<std::ptrdiff_t>(schema.arguments().size());
  const std::vector<c10::IValue> args(stack->end() - count, stack->end());
  const auto first = tape.nodes.size();
  const int before = static_cast<int>(tape.buffers.size());
  {
    const int outer = inside;
    ++inside;
    struct Leave {
      int outer;
      ~Leave() {
        inside = outer;
      }
    } leave{outer};
    op.redispatchBoxed(below, stack);
  }
  const auto name = full_name(op);
  if (!tape.refusal.empty() || &tape != current.get() || changes_metadata(op, name)) {
    return;  // the last: what it calls inside changes a tensor's sizes, and does so once
  }
  const at::ArrayRef<c10::IValue> results(stack->data() + (stack->size() - schema.returns().size()),
                                          schema.returns().size());
  Node node{op};
  find_writes(op, node);
  bool unseen = false;
  const auto look = [&](const at::Tensor& t, bool written) {
    if (!is_plain(t) || t.numel() == 0) {
      return;
    }
    const auto it = tape.by_storage.find(t.storage().unsafeGetStorageImpl());
    if (it == tape.by_storage.end()) {
      unseen = unseen || !written;
    } else {
      const auto& b = tape.buffers[it->second];
      unseen = unseen || (b.kind == BufferKind::Temp && !b.written && (written || it->second >= before));
    }
  };
  for (const auto& r : results) {
    for_each_tensor(r, [&](const at::Tensor& t, int) { look(t, false); });
  }
  for (size_t i = 0; i < args.size(); ++i) {
    if (node.writes[i]) {
      for_each_tensor(args[i], [&](const at::Tensor& t, int) { look(t, true); });
    }
  }
  if (!unseen || name.find("empty") != std::string::npos) {
    return;
  }
  node.args = args;
  node.random = op.hasTag(at::Tag::nondeterministic_seeded);
  tape.nodes.resize(first, node);
  const int index = static_cast<int>(first);
  for (size_t i = 0; i < args.size(); ++i) {
    for_each_tensor(args[i], [&](const at::Tensor& t, int item) {
      if (t.defined() && !t.unsafeGetTensorImpl()->is_wrapped_number()) {
        refer(tape, t, index, static_cast<int>(i), item, node.in, false);
      }
    });
  }
  for (size_t i = 0; i < results.size(); ++i) {
    for_each_tensor(results[i], [&](const at::Tensor& t, int item) {
      if (!t.defined()) {
        return;
      }
      refer(tape, t, index, static_cast<int>(i), item, node.out, true);
      if (node.out.back().value >= 0) {
        const int id = tape.values[node.out.back().value].buffer;
        auto& b = tape.buffers[id];
        if (b.kind == BufferKind::Temp && id >= before) {  // whatever wrote it inside is not recorded any more
          b.written = b.adopted = true;
          b.made_by = b.first = index;
        }
      }
    });
  }
  for (const auto& ref : node.in) {
    if (node.writes[ref.arg] && ref.value >= 0) {
      tape.buffers[tape.values[ref.value].buffer].written = true;
      node.written_buffers.push_back(tape.values[ref.value].buffer);
    }
  }
  check_reads(tape, node, name);
  node.note = "computes inside a composite";
  node.position = tape.position;
  node.autocast = autocast_now();
  forget_tensors(node);
  tape.random_nodes += node.random ? 1 : 0;
  if (node.random && tape.raw()) {
    remember_generator(tape, args);
  }
  node.line = tape.line();
  tape.nodes.push_back(std::move(node));
}

void record(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto below = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kKey);
  Tape* tape = current.get();
  if (tape == nullptr) {
    call_below(op, below, stack);
    return;
  }
  if (reads_values_unseen(full_name(op))) {
    tape->refuse(full_name(op) + " reads a value from a tensor on the host");
  }
  if (transparent(op)) {
    record_inside(*tape, op, below, stack);
    return;
  }
  if (!tape->refusal.empty()) {
    call_below(op, below, stack);
    return;
  }
  const auto name = full_name(op);
  const auto count = op.schema().arguments().size();
  const int index = static_cast<int>(tape->nodes.size());
  Node node{op};
  node.args.assign(stack->end() - static_cast<std::ptrdiff_t>(count), stack->end());
  node.random = op.hasTag(at::Tag::nondeterministic_seeded);
  find_writes(op, node);
  const std::vector<c10::IValue> args = node.args;

  if (op.hasTag(at::Tag::data_dependent_output)) {
    tape->refuse(name + " reads a value from a tensor on the host");
  }
  if (op.hasTag(at::Tag::dynamic_output_shape) && !sizes_follow(name, args)) {
    tape->refuse(name + " has an output whose size depends on data");
  }
  if (goes_on_unseen(name)) {
    tape->refuse(name + " goes on after it returned, and no recorded call waits for it: call it outside the block");
  }
  const bool lifts = name == "aten::lift_fresh" || name == "aten::lift";
  for (size_t i = 0; i < args.size(); ++i) {
    for_each_tensor(args[i], [&](const at::Tensor& t, int item) {
      if (!t.defined() || t.unsafeGetTensorImpl()->is_wrapped_number()) {
        return;  // a Python scalar in a tensor's place is a constant, and must stay a wrapped number
      }
      if (!t.device().is_cpu()) {
        tape->refuse(name + " takes a tensor on " + t.device().str() + ": a CPU graph takes CPU tensors");
      }
      refer(*tape, t, index, static_cast<int>(i), item, node.in, false);
    });
  }
  // What a composite of torch's passes on is counted from the argument's own offset; what the program passes is not.
  // An op that is not torch's may look at anything.
  const bool absolute = !known(name) || (inside == 0 && offset_is_absolute(name, args));
  for (const auto& ref : node.in) {
    if (absolute && ref.value >= 0) {
      tape->buffers[tape->values[ref.value].buffer].absolute = true;
    }
  }
  if (changes_metadata(op, name)) {
    for (const auto& ref : node.in) {
      const bool temp = ref.value >= 0 && tape->buffers[tape->values[ref.value].buffer].kind == BufferKind::Temp;
      if (node.writes[ref.arg] && (!temp || name.rfind("aten::set", 0) == 0)) {
        tape->refuse(name + " changes the size or the memory of a tensor from outside the graph");
      }
    }
    call_below(op, below, stack);
    return;
  }
  const bool may_draw = tape->raw() && (node.random || !known(name));
  if (may_draw) {
    check_generator(*tape, args);
  }
  if (!known(name) && tape->position >= 0 && !calls(tape->position_op, op)) {
    // Its results may have other sizes at another call, and then the rest runs live from the node on, as a whole.
    tape->refuse(name + " is called inside another call");
  }
  if (known(name) && std::any_of(node.in.begin(), node.in.end(), [](const auto& ref) { return ref.given >= 0; })) {
    tape->refuse(name + " takes an input that only custom ops were to take, as it is");
  }
  auto proof = Proof::begin(op, args, node);
  call_below(op, below, stack);
  if (tape != current.get()) {
    return;  // the call ended the capture
  }
  if (may_draw) {
    remember_generator(*tape, args);
  }
  if (lifts) {
    lift(*tape, std::move(node), stack->back().toTensor(), index);
    return;
  }
  const auto returned = op.schema().returns().size();
  const at::ArrayRef<c10::IValue> results(stack->data() + (stack->size() - returned), returned);
  if (!finish(*tape, node, name, args, results)) {
    return;
  }
  check_reads(*tape, node, name);
  {
    RecordingOff off;
    proof.end(results, node);
  }
  if (node.tier != Tier::Boxed) {
    for (const auto& ref : node.out) {
      if (ref.value < 0) {
        continue;
      }
      auto& b = tape->buffers[tape->values[ref.value].buffer];
      b.adopted = b.adopted && b.made_by != index;  // an in-place call's result is memory that an earlier one made
    }
  }
  node.autocast = node.tier == Tier::Held ? -1 : autocast_now();
  node.position = tape->position;
  forget_tensors(node);
  tape->random_nodes += node.random ? 1 : 0;
  node.line = tape->line();
  tape->nodes.push_back(std::move(node));
}

TORCH_LIBRARY_IMPL(_, Fake, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&record>());
}
}  // namespace

Tape* recording() {
  return current.get();
}

void pause_recording(bool pause) {
  if (current != nullptr) {
    c10::impl::tls_set_dispatch_key_included(kKey, !pause);
  }
}

bool same_state(const Drawn& drawn) {
  RecordingOff off;
  return drawn.state.equal(state_of(drawn.generator));
}

at::Tensor state_of(at::Generator generator) {
  RecordingOff off;
  std::lock_guard<std::mutex> guard(generator.mutex());
  return at::Tensor(generator.get_state());
}

void record_begin(std::shared_ptr<Tape> tape) {
  TORCH_INTERNAL_ASSERT(current == nullptr);
  current = std::move(tape);
  inside = 0;
  c10::impl::tls_set_dispatch_key_included(kKey, true);
}

std::shared_ptr<Tape> record_end() {
  c10::impl::tls_set_dispatch_key_included(kKey, false);
  return std::move(current);
}

void declare_inputs(Tape& tape, const std::vector<at::Tensor>& inputs, const std::vector<int>& given) {
  for (int i : given) {
    tape.given.emplace(inputs[static_cast<size_t>(i)].unsafeGetTensorImpl(), i);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_plain(inputs[i]) || tape.given.count(inputs[i].unsafeGetTensorImpl()) > 0) {
      tape.inputs.push_back(-1);
      continue;
    }
    const int value = tape.value_of(inputs[i], -1, BufferKind::Input);
    auto& b = tape.buffers[tape.values[value].buffer];
    if (b.input < 0) {
      b.input = static_cast<int>(i);
    }
    b.written = true;
    tape.inputs.push_back(value);
  }
}

RecordingOff::RecordingOff() : was_(c10::impl::tls_is_dispatch_key_included(kKey)) {
  c10::impl::tls_set_dispatch_key_included(kKey, false);
}
RecordingOff::~RecordingOff() {
  c10::impl::tls_set_dispatch_key_included(kKey, was_);
}

}  // namespace graphmode
