// Whether a row kernel gives the bits that its calls give one by one: each call alone, on numbers of every kind, and
// then all of them, on what they give each other.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <sstream>
#include <unordered_map>

#include "op_kinds.h"
#include "prove.h"
#include "recorder.h"
#include "row_chains.h"
#include "verdicts.h"

namespace graphmode {

namespace {

// Rows and columns of a trial, and on how many sets of numbers: in turn, of each kind.
struct Extent {
  int64_t rows, columns, rounds;
};

constexpr int64_t kRounds = 4, kFewRows = 3;
constexpr int64_t kRoundsOfOneRow = 64;  // another order, or another rounding, gives now and then the same bits
// No vector divides them, so that many items are left over: for calls without sums.
constexpr int64_t kOddRows = 127, kOddColumns = 33, kOddRounds = 8;

struct Verdict {
  int lanes = 0;
  int right = 0;  // how many calls, from the first, have the bits that they give one by one
};

std::atomic<int> proofs{0};  // that were made

// For one row or for any number of them.
Verdicts<Verdict>& verdicts() {
  static Verdicts<Verdict> table(1 << 12);
  return table;
}

// What follows from those for chains as they lie, so that the sixty norms of a step are put together once.
Verdicts<Verdict>& known_chains() {
  static Verdicts<Verdict> table(1 << 12);
  return table;
}

std::string describe(const Tape& t, const RowChain& chain) {
  std::ostringstream s;
  std::unordered_map<int, size_t> values;
  std::unordered_map<int, std::pair<size_t, int64_t>> buffers;  // number, offset of the first value
  s << at::get_num_threads();
  const auto value = [&](int id) {
    const auto [known, fresh] = values.emplace(id, values.size());
    s << '%' << known->second;
    if (fresh) {
      const auto& v = t.values[id];
      const auto& [number, first] = buffers.emplace(v.buffer, std::make_pair(buffers.size(), v.offset)).first->second;
      s << v.dtype.name() << c10::IntArrayRef(v.sizes) << c10::IntArrayRef(v.strides) << '#' << number << '+'
        << v.offset - first << ' ';
    }
  };
  for (int n = chain.begin; n <= chain.end; ++n) {
    const auto& node = t.nodes[n];
    s << '|' << full_name(node.op);
    describe_arguments(s, node.args);
    for (const auto& ref : node.in) {
      s << ref.arg;
      value(ref.value);
    }
    value(node.out[0].value);
  }
  for (int b : chain.inside) {
    s << '-' << buffers[b].first;
  }
  return s.str();
}

// Numbers, the same ones each time. In turn: near one, of every magnitude, near the call's own numbers, and with many
// of those that arithmetic has rules of its own for.
class Numbers {
 public:
  Numbers(int64_t round, const std::vector<float>& own)
      : state_(0x9E3779B97F4A7C15ULL * static_cast<uint64_t>(round + 1)), kind_(round % 4) {
    std::copy_if(own.begin(), own.end(), std::back_inserter(own_), [](float x) { return x != 0; });  // else a register
  }

  float next() {
    constexpr uint32_t kSpecial[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0,          0x80000000, 1,
                                     0x7F7FFFFF, 0x00800000, 0x00010000, 0x80400000, 0x3F800000, 0xBF800000};
    const auto bits = draw();
    const auto sign_and_mantissa = static_cast<uint32_t>(bits >> 20) & 0x807FFFFF;
    const auto with = [&](uint64_t exponent) {
      return std::bit_cast<float>(sign_and_mantissa | static_cast<uint32_t>(exponent) << 23);
    };
    if (kind_ == 3 && bits % 4 == 0) {
      return std::bit_cast<float>(kSpecial[(bits >> 8) % std::size(kSpecial)]);
    }
    if (kind_ == 1) {
      return with(1 + (bits >> 50) % 254);
    }
    if (kind_ == 2 && !own_.empty() && bits % 4 != 0) {
      return own_[(bits >> 4) % own_.size()] * with(126 + (bits >> 50) % 3);  // 1/2 to 4 times
    }
    return with(121 + (bits >> 50) % 9);  // 2^-6 to 2^3
  }

 private:
  uint64_t draw() {  // xorshift*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1DULL;
  }
  uint64_t state_;
  int64_t kind_;
  std::vector<float> own_;
};

at::TensorOptions options(const Value& v) {
  return at::TensorOptions().dtype(v.dtype).device(at::kCPU);
}

// Both contiguous, as all results are. One NaN is as good as another: ATen's own have other bits in a vector than in
// what is left over at the end of a row.
bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto same = [&](auto one, auto is_nan) {
    const auto* x = static_cast<const decltype(one)*>(a.const_data_ptr());
    const auto* y = static_cast<const decltype(one)*>(b.const_data_ptr());
    return std::equal(x, x + a.numel(), y, [&](auto p, auto q) { return p == q || (is_nan(p) && is_nan(q)); });
  };
  return a.dtype() == at::kFloat ? same(uint32_t{}, [](uint32_t bits) { return (bits & 0x7FFFFFFF) > 0x7F800000; })
                                 : same(uint16_t{}, [](uint16_t bits) { return (bits & 0x7FFF) > 0x7F80; });
}

class Trial {
 public:
  explicit Trial(const Tape& tape) : t_(tape) {}

  // What the calls of the chain give for these numbers; false where they give other layouts than they were recorded
  // with.
  bool call_one_by_one(const RowChain& chain, Numbers numbers) {
    tensors_.clear();
    make_inputs(chain, numbers);
    for (int n = chain.begin; n <= chain.end; ++n) {
      const auto& node = t_.nodes[n];
      const int out = node.out[0].value;
      const auto& v = t_.values[out];
      torch::jit::Stack stack(node.args.begin(), node.args.end());
      const bool copies = full_name(node.op) == "aten::copy_";
      if (copies) {
        tensors_[out] = at::empty_strided(v.sizes, v.strides, options(v));
        made_[v.buffer] = out;
      }
      for (const auto& ref : node.in) {
        stack[ref.arg] = tensor(ref.value);
      }
      node.op.callBoxed(stack);
      const auto& result = stack.back().toTensor();
      if (result.sizes() != c10::IntArrayRef(v.sizes) || result.strides() != c10::IntArrayRef(v.strides) ||
          result.dtype() != v.dtype) {
        return false;
      }
      tensors_[out] = result;
      made_[v.buffer] = out;
    }
    return true;
  }

  // How many of the results that the chain stores are those of the calls, from the first; -1: all.
  int right(const RowChain& chain, int lanes) {
    auto program = std::make_shared<RowProgram>(*chain.program);
    program->lanes = lanes;
    std::vector<at::Tensor> places;
    for (size_t i = 0; i < chain.places.size(); ++i) {
      const auto& v = t_.values[chain.places[i]];
      if (program->places[i].written) {
        auto t = at::empty_strided(v.sizes, v.strides, options(v));
        std::memset(t.mutable_data_ptr(), 0xFF, t.nbytes());
        places.push_back(std::move(t));
      } else {
        places.push_back(tensors_.at(chain.places[i]));
      }
    }
    make_row_kernel(program, places)->run();
    int right = 0;
    for (size_t i = 0; i < places.size(); ++i) {
      if (program->places[i].written && !same_bits(places[i], tensors_.at(chain.places[i]))) {
        return right;
      }
      right += program->places[i].written ? 1 : 0;
    }
    return -1;
  }

 private:
  void make_inputs(const RowChain& chain, Numbers& numbers) {
    for (size_t i = 0; i < chain.places.size(); ++i) {
      const auto& v = t_.values[chain.places[i]];
      if (!chain.program->places[i].written) {
        int64_t last = 0;
        for (size_t d = 0; d < v.sizes.size(); ++d) {
          last += (v.sizes[d] - 1) * v.strides[d];
        }
        auto memory = at::empty({last + 1}, at::kFloat);
        std::generate_n(memory.mutable_data_ptr<float>(), last + 1, [&] { return numbers.next(); });
        tensors_[chain.places[i]] = memory.to(c10::typeMetaToScalarType(v.dtype)).as_strided(v.sizes, v.strides);
      }
    }
  }

  at::Tensor tensor(int value) {
    const auto found = tensors_.find(value);
    if (found != tensors_.end()) {
      return found->second;
    }
    const auto& v = t_.values[value];
    const auto& whole = tensors_.at(made_.at(v.buffer));  // seen with other leading dimensions
    return whole.as_strided(v.sizes, v.strides);
  }

  const Tape& t_;
  std::unordered_map<int, at::Tensor> tensors_;  // by value
  std::unordered_map<int, int> made_;            // buffer -> the value that is all of it
};

bool sums(const RowChain& chain) {
  return std::any_of(chain.program->each.begin(), chain.program->each.end(),
                     [](const RowStep& s) { return s.op == RowOp::Sum || s.op == RowOp::Mean; });
}

// What stands for any number of rows: a few of them, and as many as eager splits over threads. One row is another
// program, since eager's calls and ours then take what is the same for all rows for what is theirs alone.
std::vector<Extent> extents(const RowChain& chain) {
  const auto columns = chain.program->columns;
  std::vector<Extent> found;
  if (chain.program->rows == 1) {
    found.push_back({1, columns, kRoundsOfOneRow});
  } else {
    found.push_back({kFewRows, columns, kRounds});
    found.push_back({at::internal::GRAIN_SIZE / columns + 3, columns, kRounds});
  }
  if (!sums(chain)) {
    found.push_back({chain.program->rows == 1 ? 1 : kOddRows, kOddColumns, kOddRounds});
  }
  return found;
}

// The chain over so many rows and columns, against its calls. False where nothing can be told.
bool compare(const Tape& tape, const RowChain& chain, const Extent& extent, std::vector<Verdict>& found) {
  const int calls = chain.end - chain.begin + 1;
  const auto reshaped = on_rows(tape, chain, extent.rows, extent.columns);
  if (!reshaped) {
    return false;
  }
  const auto kept = read_row_chain(reshaped->tape, 0, calls, true, 1, reshaped->chain.program.get());
  if (!kept || kept->end + 1 != calls) {
    return false;
  }
  Trial trial(reshaped->tape);
  for (int64_t round = 0; round < extent.rounds; ++round) {
    if (!trial.call_one_by_one(*kept, Numbers(round, kept->program->numbers))) {
      return false;
    }
    for (auto& v : found) {
      const int right = trial.right(*kept, v.lanes);
      v.right = right < 0 ? v.right : std::min(v.right, right);
      if (v.right == calls && trial.right(reshaped->chain, v.lanes) >= 0) {
        v.right = 0;  // not because of a call: no part of it is to be trusted
      }
    }
  }
  return true;
}

// `lanes`: what to try.
Verdict prove(const Tape& tape, const RowChain& chain, const std::vector<int>& lanes) {
  RecordingOff off;
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  at::NoGradGuard no_grad;
  std::vector<Verdict> found;
  for (int l : lanes) {
    found.push_back({l, chain.end - chain.begin + 1});
  }
  for (const auto& extent : extents(chain)) {
    if (!compare(tape, chain, extent, found)) {
      return {};
    }
  }
  return *std::max_element(found.begin(), found.end(),
                           [](const Verdict& a, const Verdict& b) { return a.right < b.right; });
}

// Proofs are made once for all calls of a kind.
Verdict remembered(const Tape& tape, const RowChain& chain, const std::vector<int>& lanes) {
  const auto& p = *chain.program;
  const auto any = on_rows(tape, chain, p.rows == 1 ? 1 : kFewRows, p.columns);
  if (!any) {
    return {};
  }
  auto key = describe(any->tape, any->chain);
  for (int l : lanes) {
    key += '/' + std::to_string(l);
  }
  if (const auto known = verdicts().find(key)) {
    return *known;
  }
  Verdict verdict;
  ++proofs;
  try {
    verdict = prove(tape, chain, lanes);
  } catch (const std::exception&) {  // memory for the trial, or an op that raises on these numbers: not proved
  }
  verdicts().keep(key, verdict);
  return verdict;
}

// Each call, then all of them.
Verdict put_together(const Tape& tape, const RowChain& chain) {
  int lanes = 8;
  bool known = false;
  for (int n = chain.begin; n <= chain.end; ++n) {
    const auto call = read_row_chain(tape, n, n + 1, false, 1, chain.program.get());
    if (!call) {
      return {lanes, n - chain.begin};
    }
    const bool adds = sums(*call);
    const auto verdict = remembered(tape, *call, adds && !known ? std::vector<int>{8, 16} : std::vector<int>{lanes});
    if (verdict.right == 0) {
      return {lanes, n - chain.begin};
    }
    if (adds) {
      lanes = verdict.lanes;
      known = true;
    }
  }
  return {lanes, remembered(tape, chain, {lanes}).right};
}

}  // namespace

void describe_arguments(std::ostream& to, at::ArrayRef<c10::IValue> args) {
  for (const auto& a : args) {
    to << ',' << a.tagKind();
    if (a.isTensor() && a.toTensor().defined()) {  // a Python number in a tensor's place
      const auto x = a.toTensor().item().toComplexDouble();
      to << a.toTensor().dtype().name() << a.toTensor().unsafeGetTensorImpl()->is_wrapped_number()
         << std::bit_cast<uint64_t>(x.real()) << ',' << std::bit_cast<uint64_t>(x.imag());
    } else if (a.isDouble()) {
      to << std::bit_cast<uint64_t>(a.toDouble());
    } else {
      to << a;
    }
  }
}

int prove_row_chain(const Tape& tape, RowChain& chain) {
  const auto key = describe(tape, chain);
  auto verdict = known_chains().find(key);
  if (!verdict) {
    verdict = put_together(tape, chain);
    known_chains().keep(key, *verdict);
  }
  auto program = std::make_shared<RowProgram>(*chain.program);
  program->lanes = verdict->lanes;
  chain.program = std::move(program);
  return verdict->right;
}

int row_proofs() {
  return proofs;
}

void forget_row_proofs() {
  verdicts().forget();
  known_chains().forget();
}

}  // namespace graphmode
