#include "prove.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>
#include <sstream>
#include <unordered_map>

#include "copies.h"
#include "held.h"
#include "op_kinds.h"
#include "recorder.h"
#include "verdicts.h"

namespace graphmode {

namespace {

// Not-a-number in every floating dtype: a kernel that reads its output before writing it can't hide behind rounding.
constexpr int kGarbage = 0xFF;
constexpr int64_t kLarge = 1 << 20;

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.dtype() != b.dtype() || (a.numel() > 1 && a.strides() != b.strides())) {
    return false;
  }
  if (a.numel() == 0) {
    return true;
  }
  auto physical = [](const at::Tensor& t) { return t.is_non_overlapping_and_dense() ? t : t.contiguous(); };
  auto x = physical(a), y = physical(b);
  return std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

std::vector<at::Tensor> scratch_like(const std::vector<at::Tensor>& results, int garbage = kGarbage) {
  std::vector<at::Tensor> out;
  for (const auto& r : results) {
    auto t = at::empty_strided(r.sizes(), r.strides(), r.options());
    if (t.storage().nbytes() > 0) {
      std::memset(t.mutable_data_ptr(), garbage, t.storage().nbytes());
    }
    out.push_back(std::move(t));
  }
  return out;
}

bool untouched(const std::vector<at::Tensor>& scratch, int garbage) {
  return std::all_of(scratch.begin(), scratch.end(), [&](const at::Tensor& t) {
    const auto* bytes = static_cast<const unsigned char*>(t.storage().data());
    const auto n = t.storage().nbytes();
    return n == 0 || (bytes[0] == garbage && std::memcmp(bytes, bytes + 1, n - 1) == 0);
  });
}

Values call(const c10::OperatorHandle& op, const Values& args) {
  torch::jit::Stack stack(args.begin(), args.end());
  op.callBoxed(stack);
  return stack;
}

std::string describe(const c10::OperatorHandle& op, const Values& args) {
  std::ostringstream s;
  s << full_name(op) << '|' << at::get_num_threads();
  if (at::autocast::is_autocast_enabled(at::kCPU)) {
    s << 'a' << static_cast<int>(at::autocast::get_autocast_dtype(at::kCPU));
  }
  std::unordered_map<const void*, std::pair<int, int64_t>> storages;  // number, offset of the first tensor in bytes
  for (const auto& v : args) {
    s << '|';
    if (v.isTensor() || (v.isList() && !v.isIntList() && !v.isDoubleList() && !v.isBoolList())) {
      map_tensors(v, [&](const at::Tensor& t) {
        s << t.dtype().name() << t.sizes() << t.strides() << plain_keys(t).raw_repr()
          << (t.unsafeGetTensorImpl()->is_wrapped_number() ? 'w' : ' ');
        if (t.has_storage()) {
          const auto offset = t.storage_offset() * static_cast<int64_t>(t.itemsize());
          auto [it, fresh] = storages.emplace(t.storage().unsafeGetStorageImpl(),
                                              std::make_pair(static_cast<int>(storages.size()), offset));
          s << '#' << it->second.first;
          if (!fresh) {
            s << '@' << offset - it->second.second;
          }
        }
        return t;
      });
      if (v.isList()) {
        s << 'x' << v.toListRef().size();
      }
    } else if (v.isGenerator()) {
      s << 'g';
    } else {
      s << v.tagKind() << v;
    }
  }
  return s.str();
}

std::vector<at::Tensor> together(const Values& args, const std::vector<at::Tensor>& outs) {
  auto all = tensors_of(args);
  all.insert(all.end(), outs.begin(), outs.end());
  return all;
}

struct Verdict {
  Tier tier = Tier::Boxed;
  std::string held;
  std::optional<c10::OperatorHandle> out_op;
  std::string note;
};

Verdicts<Verdict>& verdicts() {
  static Verdicts<Verdict> table(1 << 14);  // some 8 MB
  return table;
}

// The storage among `tensors` that an address lies in. Operands are found by address: an iterator may have been built
// on tensors that died with the kernel's meta function (glu's halves do).
c10::StorageImpl* storage_at(const void* address, const std::vector<at::Tensor>& tensors) {
  for (const auto& t : tensors) {
    if (t.has_storage()) {
      const auto* lo = static_cast<const char*>(t.storage().data());
      const auto* p = static_cast<const char*>(address);
      if (lo != nullptr && lo <= p && p < lo + t.storage().nbytes()) {
        return t.storage().unsafeGetStorageImpl();
      }
    }
  }
  return nullptr;
}

// Every operand of the iterator must lie in one of our tensors (then its address can follow), or be a converted
// constant.
const char* iterator_fits(at::TensorIteratorBase* it, const std::vector<at::Tensor>& ours) {
  if (it == nullptr || it->numel() == 0) {
    return nullptr;
  }
  for (int i = 0; i < it->ntensors(); ++i) {
    const auto& operand = it->operand(i);
    if (operand.original_tensor_base().defined()) {
      if (operand.is_output || !operand.original_tensor_base().unsafeGetTensorImpl()->is_wrapped_number()) {
        return "the iterator converted an argument when it was built";
      }
    } else if (storage_at(operand.data, ours) == nullptr) {
      return "the iterator holds a tensor made when it was built";
    }
  }
  return nullptr;
}

// Runs eager and the candidate on the given arguments and once more on changed ones.
// `inplace`: the outputs are argument 0 and the candidate writes it.
class Trial {
 public:
  Trial(const c10::OperatorHandle& op, const Values& before, const Writes& writes, std::vector<at::Tensor> expected,
        bool inplace)
      : op_(op), before_(before), writes_(writes), expected_(std::move(expected)), inplace_(inplace) {}

  // Empty when the candidate held; else why not.
  std::string held(const HeldOp& held, size_t drop) {
    Copies copies(before_, writes_);
    Values args = map_all(before_, copies);
    auto outs = inplace_ ? std::vector<at::Tensor>{args[0].toTensor()} : scratch_like(expected_);
    try {
      Values taken(args.begin(), args.end() - static_cast<std::ptrdiff_t>(drop));
      if (!makes_without_writing(held, taken)) {
        return "its meta function writes the result";
      }
      auto kernel = held.make(taken, outs);
      if (const char* why = iterator_fits(kernel->iterator(), together(args, outs))) {
        return why;
      }
      kernel->run();
      if (!equal(outs, expected_)) {
        return "a held kernel gave other bits";
      }
      // Second set, at other addresses: the storages are re-bound under the held tensors.
      Copies second(before_);
      Values changed = map_all(before_, second);
      second.change(changed);
      Copies third(changed, writes_);
      Values eager_args = map_all(changed, third);
      auto want = run_eager(eager_args);
      rebind(args, changed, outs, kernel->iterator());
      auto got = inplace_ ? std::vector<at::Tensor>{args[0].toTensor()} : outs;
      kernel->run();
      return equal(got, want) ? "" : "a held kernel gave other bits on changed values";
    } catch (const NotHoldable& e) {
      return e.why;
    } catch (const c10::Error& e) {
      return "a held kernel raised: " + e.msg();
    }
  }

  std::string out_variant(const c10::OperatorHandle& out_op) {
    try {
      if (auto why = out_once(out_op, map_all(before_, Copies(before_, writes_)), expected_); !why.empty()) {
        return why;
      }
      // An out-variant takes its arguments at each call: weights may stay what and where they are.
      Copies copies(before_, large());
      Values args = map_all(before_, copies);
      copies.change(args);
      auto want = run_eager(args);
      auto why = out_once(out_op, args, want);
      return why.empty() ? "" : why + " on changed values";
    } catch (const c10::Error& e) {
      return "the out-variant raised: " + e.msg();
    }
  }

 private:
  static bool equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
    if (a.size() != b.size()) {
      return false;
    }
    for (size_t i = 0; i < a.size(); ++i) {
      if (!same_bits(a[i], b[i])) {
        return false;
      }
    }
    return true;
  }
  // Bytes of an argument that is large beside the results: a new size must not cost a copy of an embedding.
  int64_t large() const {
    int64_t bytes = kLarge;
    for (const auto& r : expected_) {
      bytes = std::max(bytes, 16 * static_cast<int64_t>(r.nbytes()));
    }
    return bytes;
  }
  std::vector<at::Tensor> run_eager(Values& args) {
    auto results = call(op_, args);
    return inplace_ ? std::vector<at::Tensor>{args[0].toTensor()} : tensors_of(results);
  }
  // A held kernel is made when nobody has called it yet: what that writes would be lost, or harm what lies there.
  bool makes_without_writing(const HeldOp& held, const Values& taken) const {
    if (inplace_) {
      Values again = map_all(taken, Copies(taken, writes_));
      held.make(again, {again[0].toTensor()});
      return same_bits(again[0].toTensor(), before_[0].toTensor());
    }
    constexpr int kOther = 0xA5;
    auto spare = scratch_like(expected_, kOther);
    held.make(taken, spare);
    return untouched(spare, kOther);
  }
  static std::string out_once(const c10::OperatorHandle& out_op, const Values& args,
                              const std::vector<at::Tensor>& want) {
    auto outs = scratch_like(want);
    Values with = args;
    std::vector<const void*> addresses;
    for (const auto& o : outs) {
      with.emplace_back(o);
      addresses.push_back(o.const_data_ptr());
    }
    call(out_op, with);
    for (size_t i = 0; i < outs.size(); ++i) {
      if (outs[i].const_data_ptr() != addresses[i]) {
        return "the out-variant moved its output";
      }
    }
    return equal(outs, want) ? "" : "the out-variant gave other bits";
  }
  // Puts the bytes of `source` under the tensors of `held`, at their new addresses.
  void rebind(Values& held, const Values& source, const std::vector<at::Tensor>& outs, at::TensorIteratorBase* it) {
    std::unordered_map<c10::StorageImpl*, std::ptrdiff_t> moved;
    auto from = tensors_of(held), to = tensors_of(source);
    std::vector<c10::StorageImpl*> owners;  // of the iterator's operands, before anything moves
    const auto ours = together(held, outs);
    for (int i = 0; it != nullptr && it->numel() > 0 && i < it->ntensors(); ++i) {
      const auto& operand = it->operand(i);
      owners.push_back(operand.original_tensor_base().defined() ? nullptr : storage_at(operand.data, ours));
    }
    for (size_t i = 0; i < from.size(); ++i) {
      if (!is_plain(from[i]) || from[i].numel() == 0 || from[i].unsafeGetTensorImpl()->is_wrapped_number()) {
        continue;
      }
      auto* a = from[i].storage().unsafeGetStorageImpl();
      auto* b = to[i].storage().unsafeGetStorageImpl();
      if (moved.emplace(a, static_cast<char*>(b->mutable_data()) - static_cast<char*>(a->mutable_data())).second) {
        keep_.push_back(to[i].storage());
      }
    }
    for (auto& [impl, by] : moved) {
      old_.push_back(impl->set_data_ptr(at::DataPtr(static_cast<char*>(impl->mutable_data()) + by, at::kCPU)));
    }
    for (const auto& o : outs) {
      auto* impl = o.storage().unsafeGetStorageImpl();
      if (!inplace_ && o.numel() > 0 && !moved.count(impl)) {
        auto fresh = at::empty({static_cast<int64_t>(impl->nbytes())}, at::kByte);
        std::memset(fresh.mutable_data_ptr(), kGarbage, impl->nbytes());
        keep_.push_back(fresh.storage());
        moved.emplace(impl, static_cast<char*>(fresh.mutable_data_ptr()) - static_cast<char*>(impl->mutable_data()));
        old_.push_back(impl->set_data_ptr(at::DataPtr(fresh.mutable_data_ptr(), at::kCPU)));
      }
    }
    for (size_t i = 0; i < owners.size(); ++i) {
      auto found = moved.find(owners[i]);
      if (found != moved.end()) {
        const auto n = static_cast<int64_t>(i);
        it->unsafe_replace_operand(n, static_cast<char*>(it->operand(static_cast<int>(i)).data) + found->second);
      }
    }
  }

  c10::OperatorHandle op_;
  const Values& before_;
  const Writes& writes_;
  std::vector<at::Tensor> expected_;
  bool inplace_;
  std::vector<c10::Storage> keep_;
  std::vector<at::DataPtr> old_;
};

}  // namespace

std::optional<c10::OperatorHandle> out_variant(const c10::OperatorHandle& op) {
  static const auto by_name = [] {
    std::unordered_map<std::string, std::vector<c10::OperatorHandle>> table;
    auto& dispatcher = c10::Dispatcher::singleton();
    for (const auto& name : dispatcher.getAllOpNames()) {
      auto handle = dispatcher.findSchema(name);
      if (handle && !handle->schema().arguments().empty()) {
        const auto& last = handle->schema().arguments().back();
        if (last.is_out()) {
          table[name.name].push_back(*handle);
        }
      }
    }
    return table;
  }();
  auto it = by_name.find(op.operator_name().name);
  if (it == by_name.end()) {
    return std::nullopt;
  }
  const auto& schema = op.schema();
  const auto n = schema.arguments().size();
  for (const auto& candidate : it->second) {
    const auto& arguments = candidate.schema().arguments();
    if (arguments.size() != n + schema.returns().size() || !candidate.hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      continue;
    }
    bool same = true;
    for (size_t i = 0; i < arguments.size() && same; ++i) {
      same = i < n ? arguments[i].name() == schema.arguments()[i].name() &&
                         *arguments[i].type() == *schema.arguments()[i].type() && !arguments[i].is_out()
                   : arguments[i].is_out();
    }
    if (same) {
      return candidate;
    }
  }
  return std::nullopt;
}

Proof Proof::begin(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args, const Node& node) {
  Proof p;
  const auto name = full_name(op);
  if (node.random || !known(name)) {
    return p;  // an op that is not torch's runs once: what else it does, nobody knows
  }
  auto held = held_ops().find(name);
  const bool writes = std::find(node.writes.begin(), node.writes.end(), true) != node.writes.end();
  p.candidate_ = held != held_ops().end() || (!writes && out_variant(op).has_value());
  if (!p.candidate_) {
    return p;
  }
  for (const auto& v : args) {
    for (const auto& t : tensors_of(v)) {
      p.candidate_ = p.candidate_ && is_plain(t);
    }
  }
  if (!p.candidate_) {
    return p;
  }
  p.key_ = describe(op, args);
  p.known_ = verdicts().find(p.key_).has_value();
  if (!p.known_) {
    RecordingOff off;
    p.before_ = writes ? map_all(args, Copies(args, node.writes)) : args;
  }
  return p;
}

void Proof::end(at::ArrayRef<c10::IValue> results, Node& node) {
  const bool writes = std::find(node.writes.begin(), node.writes.end(), true) != node.writes.end();
  if (!candidate_ || (!writes && !node.functional)) {
    return;
  }
  Verdict verdict;
  if (known_) {
    verdict = verdicts().find(key_).value_or(Verdict());  // the table may have been cleared since
  } else {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto name = full_name(node.op);
    auto held = held_ops().find(name);
    auto expected = tensors_of(results);
    const bool inplace = writes && held != held_ops().end() && held->second.inplace_self;
    Trial trial(node.op, before_, node.writes, expected, inplace);
    verdict.note = "no kernel that could be held";
    if (held != held_ops().end()) {
      const bool out_overload = writes && !inplace;
      verdict.note = trial.held(held->second, out_overload ? static_cast<size_t>(held->second.outputs) : 0);
      if (verdict.note.empty()) {
        verdict.tier = Tier::Held;
        verdict.held = name;
      }
    }
    if (verdict.tier == Tier::Boxed && !writes) {
      if (auto candidate = out_variant(node.op)) {
        auto why = trial.out_variant(*candidate);
        if (why.empty()) {
          verdict.tier = Tier::Out;
          verdict.out_op = candidate;
        } else {
          verdict.note += "; " + why;
        }
      }
    }
    verdicts().keep(key_, verdict);
  }
  node.tier = verdict.tier;
  node.held = verdict.held;
  node.out_op = verdict.out_op;
  node.note = verdict.note;
}

void forget_proofs() {
  verdicts().forget();
}

}  // namespace graphmode
