// A chain's calls over other numbers of rows and columns than they were recorded with.
#include <algorithm>
#include <bit>

#include "row_chains.h"

namespace graphmode {

namespace {

constexpr int64_t kApart = 16;  // items between the rows of what is not contiguous

// All but where the rows are.
bool same_program(const RowProgram& a, const RowProgram& b) {
  const auto same_places = std::equal(a.places.begin(), a.places.end(), b.places.begin(), b.places.end(),
                                      [](const RowPlace& x, const RowPlace& y) {
                                        return x.bf16 == y.bf16 && x.number == y.number && x.written == y.written;
                                      });
  const auto same_numbers =
      std::equal(a.numbers.begin(), a.numbers.end(), b.numbers.begin(), b.numbers.end(),
                 [](float x, float y) { return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y); });
  return same_places && same_numbers && a.vectors == b.vectors && a.first == b.first && a.each == b.each;
}

class Reshaper {
 public:
  Reshaper(const Tape& tape, const RowChain& chain, int64_t rows, int64_t columns)
      : t_(tape), chain_(chain), p_(*chain.program), rows_(rows), columns_(columns) {}

  std::optional<OnRows> run() {
    for (int n = chain_.begin; n <= chain_.end; ++n) {
      if (!add(t_.nodes[n])) {
        return std::nullopt;
      }
    }
    RowProgram like;
    like.rows = rows_;
    like.columns = columns_;
    const auto count = static_cast<int>(made_.nodes.size());
    auto chain = read_row_chain(made_, 0, count, false, 1, &like);
    if (!chain || chain->end + 1 != count || !same_program(*chain->program, p_)) {
      return std::nullopt;
    }
    return OnRows{std::move(made_), std::move(*chain)};
  }

 private:
  bool add(const Node& node) {
    Node copy = node;
    for (auto* refs : {&copy.in, &copy.out}) {
      for (auto& ref : *refs) {
        const auto v = value(ref.value);
        if (!v) {
          return false;
        }
        ref.value = *v;
      }
    }
    if (copy.args.size() > 1 && copy.args[1].isIntList()) {  // of a sum: its dimension is the last one
      copy.args[1] = std::vector<int64_t>{-1};
    }
    made_.nodes.push_back(std::move(copy));
    return true;
  }

  std::optional<int> value(int id) {
    if (const auto known = values_.find(id); known != values_.end()) {
      return known->second;
    }
    const auto& v = t_.values[id];
    auto w = reshaped(v);
    if (!w) {
      return std::nullopt;
    }
    const auto& b = t_.buffers[v.buffer];
    const bool made = std::any_of(t_.nodes.begin() + chain_.begin, t_.nodes.begin() + chain_.end + 1,
                                  [&](const Node& n) { return t_.values[n.out[0].value].buffer == v.buffer; });
    const auto shared = made ? buffers_.find(v.buffer) : buffers_.end();
    if (shared != buffers_.end()) {
      w->buffer = shared->second;
    } else {
      w->buffer = static_cast<int>(made_.buffers.size());
      auto& fresh = made_.buffers.emplace_back(nullptr);
      fresh.kind = b.kind;
      fresh.survives = b.survives;
      fresh.first = b.first - chain_.begin;
      fresh.last = b.last - chain_.begin;
      fresh.made_by = b.made_by - chain_.begin;
      if (made) {
        buffers_.emplace(v.buffer, w->buffer);
      }
    }
    made_.values.push_back(std::move(*w));
    const int index = static_cast<int>(made_.values.size()) - 1;
    values_.emplace(id, index);
    return index;
  }

  // An item for each column of each row; one row for all; one number for each row; one number.
  std::optional<Value> reshaped(const Value& v) const {
    const auto n = items(v);
    const auto dims = v.sizes.size();
    const bool whole = dims > 0 && v.sizes.back() == p_.columns;
    auto w = v;
    w.offset = 0;
    w.sizes.assign(dims, 1);
    if (whole && n == p_.rows * p_.columns) {
      w.sizes.back() = columns_;
      if (dims > 1) {
        w.sizes[dims - 2] = rows_;
      } else if (rows_ != 1) {
        return std::nullopt;
      }
    } else if (whole && n == p_.columns) {
      w.sizes.back() = columns_;
    } else if (n == p_.rows) {
      if (dims > 0) {
        w.sizes[dims > 1 && v.sizes.back() == 1 ? dims - 2 : dims - 1] = rows_;
      }
    } else if (n != 1) {
      return std::nullopt;
    }
    w.strides.assign(dims, 1);
    for (size_t d = dims; d-- > 1;) {
      w.strides[d - 1] = w.strides[d] * w.sizes[d];
    }
    if (!contiguous(v)) {
      bool repeated = true;  // one for all, seen as many
      for (size_t d = 0; d + (whole ? 1 : 0) < dims; ++d) {
        repeated = repeated && (v.sizes[d] == 1 || v.strides[d] == 0);
      }
      for (size_t d = 0; d + (whole ? 1 : 0) < dims; ++d) {
        w.strides[d] = repeated ? 0 : w.strides[d] + kApart;
      }
    }
    return w;
  }

  const Tape& t_;
  const RowChain& chain_;
  const RowProgram& p_;
  int64_t rows_, columns_;
  Tape made_;
  std::unordered_map<int, int> values_, buffers_;
};

}  // namespace

std::optional<OnRows> on_rows(const Tape& tape, const RowChain& chain, int64_t rows, int64_t columns) {
  return Reshaper(tape, chain, rows, columns).run();
}

}  // namespace graphmode
