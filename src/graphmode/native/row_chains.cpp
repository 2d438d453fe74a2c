#include "row_chains.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "op_kinds.h"

namespace graphmode {

namespace {

constexpr int64_t kFewestColumns = 16;  // of fewer, a row is not worth its steps
// Of more, eager sums one row by several threads, in another order; and registers leave the caches.
constexpr int64_t kMostColumns = at::internal::GRAIN_SIZE - 1;
constexpr int kMostCalls = 64;
constexpr const char* kCopy = "aten::copy_";
constexpr const char* kPower = "aten::pow.Tensor_Scalar";

const std::unordered_map<std::string, RowOp>& unary_ops() {
  static const std::unordered_map<std::string, RowOp> table = {
      {"aten::neg", RowOp::Neg},       {"aten::abs", RowOp::Abs},     {"aten::relu", RowOp::Relu},
      {"aten::sqrt", RowOp::Sqrt},     {"aten::rsqrt", RowOp::Rsqrt}, {"aten::reciprocal", RowOp::Reciprocal},
      {"aten::square", RowOp::Square},
  };
  return table;
}

const std::unordered_map<std::string, RowOp>& binary_ops() {
  static const std::unordered_map<std::string, RowOp> table = {
      {"aten::add.Tensor", RowOp::Add},
      {"aten::sub.Tensor", RowOp::Sub},
      {"aten::mul.Tensor", RowOp::Mul},
      {"aten::div.Tensor", RowOp::Div},
  };
  return table;
}

bool is_reduction(const std::string& name) {
  return name == "aten::mean.dim" || name == "aten::sum.dim_IntList";
}

std::optional<double> number_in(const c10::IValue& v) {
  if (v.isTensor() && v.toTensor().defined() && v.toTensor().numel() == 1 && !v.toTensor().is_complex()) {
    return v.toTensor().item().toDouble();
  }
  if (v.isInt() || v.isDouble()) {
    return v.toScalar().toDouble();
  }
  return std::nullopt;
}

bool is_one(const c10::IValue& v) {
  return (v.isInt() && v.toInt() == 1) || (v.isDouble() && v.toDouble() == 1);
}

// Reads calls one by one, as steps over rows, until one does not fit.
class Reader {
 public:
  Reader(const Tape& tape, int begin, const RowProgram* like)
      : t_(tape), begin_(begin), rows_(like ? like->rows : 0), columns_(like ? like->columns : 0) {}

  // False, and nothing changed, when the node is none of ours.
  bool add(int index) {
    const auto saved =
        std::make_tuple(steps_.size(), places_.size(), place_values_.size(), numbers_.size(), vectors_, made_.size());
    if (count_ < kMostCalls && read(index)) {
      ++count_;
      return true;
    }
    steps_.resize(std::get<0>(saved));
    places_.resize(std::get<1>(saved));
    place_values_.resize(std::get<2>(saved));
    numbers_.resize(std::get<3>(saved));
    vectors_ = std::get<4>(saved);
    made_.resize(std::get<5>(saved));
    std::erase_if(loaded_, [&](const auto& l) { return l.second >= static_cast<int>(places_.size()); });
    return false;
  }

  int count() const {
    return count_;
  }

  RowChain finish(bool keep) {
    RowChain chain;
    chain.begin = begin_;
    chain.end = begin_ + count_ - 1;
    for (const auto& m : made_) {
      const auto& b = t_.buffers[t_.values[m.value].buffer];
      const bool inside = b.kind == BufferKind::Temp && b.last <= chain.end;
      if (keep || !inside) {
        store(m);
      } else if (std::find(chain.inside.begin(), chain.inside.end(), t_.values[m.value].buffer) == chain.inside.end()) {
        chain.inside.push_back(t_.values[m.value].buffer);
      }
    }
    std::stable_sort(steps_.begin(), steps_.end(), [](const Placed& x, const Placed& y) { return x.after < y.after; });
    auto p = std::make_shared<RowProgram>();
    p->rows = rows_;
    p->columns = columns_;
    p->lanes = 8;
    p->places = places_;
    p->numbers = numbers_;
    for (auto& s : steps_) {
      const bool once = s.step.op == RowOp::Load && places_[s.step.place].step == 0 &&
                        places_[s.step.place].rows.empty() && rows_ > 1;
      (once ? p->first : p->each).push_back(s.step);
    }
    p->vectors = vectors_;
    combine_steps(*p);
    chain.program = std::move(p);
    chain.places = place_values_;
    return chain;
  }

 private:
  struct Made {
    int value;
    RowRegister in;
    bool is_row;   // an item for each column of each row; else one for each row
    size_t after;  // the step that made it
  };
  struct Placed {
    RowStep step;
    size_t after;  // in which order it runs: a store right after what made its value
  };

  bool read(int index) {
    const auto& node = t_.nodes[index];
    if (node.kind != NodeKind::Call || node.tier == Tier::Boxed || node.random || node.out.size() != 1) {
      return false;
    }
    for (const auto& ref : node.in) {
      if (ref.value < 0 || ref.item >= 0) {
        return false;
      }
    }
    if (node.in.empty()) {
      return false;
    }
    const auto name = full_name(node.op);
    const int out = node.out[0].value;
    if (out < 0 || node.out[0].item >= 0 || !float_or_bf16(out) || !contiguous(t_.values[out]) ||
        !made_by(index, name)) {
      return false;
    }
    if (is_reduction(name)) {
      return reduce(node, name == "aten::mean.dim" ? RowOp::Mean : RowOp::Sum, out);
    }
    const auto& v = t_.values[out];
    if (rows_ == 0 && !set_size(v)) {
      return false;
    }
    const bool is_row = !v.sizes.empty() && v.sizes.back() == columns_ && items(v) == rows_ * columns_;
    if (!is_row && (items(v) != rows_ || (v.sizes.empty() ? 1 : v.sizes.back()) == columns_)) {
      return false;
    }
    return compute(node, name, out, is_row);
  }

  // The call's result has to be memory that nothing has seen before: its own, or that of a copy into new memory.
  bool made_by(int index, const std::string& name) const {
    const auto& node = t_.nodes[index];
    const auto& b = t_.buffers[t_.values[node.out[0].value].buffer];
    if (b.adopted || b.first != index) {
      return false;
    }
    if (name == kCopy) {
      return b.kind == BufferKind::Temp || b.kind == BufferKind::Output || b.survives;
    }
    return node.functional && b.made_by == index;
  }

  bool compute(const Node& node, const std::string& name, int out, bool is_row) {
    const auto& sizes = t_.values[out].sizes;
    if (name == kCopy) {
      const auto from = node.in.size() == 2 ? operand(node.in[1].value, sizes, is_row) : std::nullopt;
      return from && make(out, *from, is_row, t_.values[node.in[1].value].dtype == t_.values[out].dtype);
    }
    if (auto op = unary_ops().find(name); op != unary_ops().end()) {
      const auto a = operand(node.in[0].value, sizes, is_row);
      // In bfloat16 ATen rounds these twice in what is left over at the end of a vector.
      const bool roots = op->second == RowOp::Sqrt || op->second == RowOp::Rsqrt || op->second == RowOp::Reciprocal;
      if (roots && t_.values[out].dtype != caffe2::TypeMeta::Make<float>()) {
        return false;
      }
      const bool exact = op->second == RowOp::Neg || op->second == RowOp::Abs || op->second == RowOp::Relu;
      return a && a->number != is_row && t_.values[node.in[0].value].dtype == t_.values[out].dtype &&
             make(out, step(op->second, is_row, *a, {}), is_row, exact);
    }
    if (name == kPower) {
      const auto exponent = number_in(node.args[1]);
      const auto a = operand(node.in[0].value, sizes, is_row);
      return a && a->number != is_row && exponent == 2.0 && make(out, step(RowOp::Square, is_row, *a, {}), is_row);
    }
    auto op = binary_ops().find(name);
    if (op == binary_ops().end() || (node.args.size() > 2 && !is_one(node.args[2]))) {
      return false;
    }
    const bool narrow = t_.values[out].dtype != caffe2::TypeMeta::Make<float>();
    std::optional<RowRegister> sides[2];
    for (int i = 0; i < 2; ++i) {
      const auto ref = std::find_if(node.in.begin(), node.in.end(), [&](const TensorRef& r) { return r.arg == i; });
      if (ref != node.in.end()) {
        const auto& side = t_.values[ref->value];
        if (narrow && side.dtype == caffe2::TypeMeta::Make<float>()) {
          return false;  // one item of a wider dtype: ATen rounds it in the first place, and not in the second
        }
        sides[i] = operand(ref->value, sizes, is_row);
      } else if (const auto x = number_in(node.args[i]); x && !(narrow && i == 0)) {  // the same of a Python number
        sides[i] = number(static_cast<float>(*x));
      }
      if (!sides[i]) {
        return false;
      }
    }
    const bool of_numbers = sides[0]->number && sides[1]->number;
    if (is_row && of_numbers) {
      return false;  // a result that is the same along the row
    }
    return make(out, step(op->second, is_row, *sides[0], *sides[1]), is_row);
  }

  bool set_size(const Value& v) {
    columns_ = v.sizes.empty() ? 0 : v.sizes.back();
    rows_ = columns_ == 0 ? 0 : items(v) / columns_;
    return columns_ >= kFewestColumns && columns_ <= kMostColumns && rows_ > 0;
  }

  bool reduce(const Node& node, RowOp op, int out) {
    const int in = node.in[0].value;
    const auto& v = t_.values[in];
    const auto last = static_cast<int64_t>(v.sizes.size()) - 1;
    if (node.in.size() != 1 || !node.args[1].isIntList() || node.args[1].toIntVector().size() != 1 || !contiguous(v) ||
        v.keys != t_.values[out].keys || (rows_ == 0 && !set_size(v)) || last < 0 || v.sizes.back() != columns_ ||
        items(v) != rows_ * columns_) {
      return false;
    }
    const auto from = operand(in, v.sizes, true);
    if (!from || from->number) {
      return false;
    }
    const auto dim = node.args[1].toIntVector()[0];
    const auto is_float = [](const Value& x) { return x.dtype == caffe2::TypeMeta::Make<float>(); };
    if ((dim != last && dim != -1) || !is_float(v) || !is_float(t_.values[out]) || items(t_.values[out]) != rows_) {
      return false;
    }
    return make(out, step(op, false, *from, {}), false);
  }

  bool float_or_bf16(int value) const {
    const auto& dtype = t_.values[value].dtype;
    return dtype == caffe2::TypeMeta::Make<float>() || dtype == caffe2::TypeMeta::Make<c10::BFloat16>();
  }

  // What the chain made, where this value is all of it, as it was made or seen with other leading dimensions.
  const Made* made(int value) const {
    const auto& v = t_.values[value];
    for (auto m = made_.rbegin(); m != made_.rend(); ++m) {
      const auto& w = t_.values[m->value];
      if (w.buffer == v.buffer) {
        const bool same =
            w.dtype == v.dtype && w.offset == v.offset && w.keys == v.keys && items(w) == items(v) && contiguous(v);
        const bool rows = !m->is_row || (!v.sizes.empty() && v.sizes.back() == columns_);
        return same && rows ? &*m : nullptr;
      }
    }
    return nullptr;
  }

  bool touched(int buffer) const {
    return std::any_of(made_.begin(), made_.end(), [&](const Made& m) { return t_.values[m.value].buffer == buffer; });
  }

  // Where a value stands for a call whose result has these sizes: a register, filled before if need be.
  std::optional<RowRegister> operand(int value, const std::vector<int64_t>& sizes, bool is_row) {
    const auto& v = t_.values[value];
    if (!float_or_bf16(value) || v.keys != t_.values[t_.nodes[begin_].out[0].value].keys ||
        v.sizes.size() > sizes.size()) {
      return std::nullopt;
    }
    std::vector<int64_t> own(sizes.size() - v.sizes.size(), 1);
    own.insert(own.end(), v.sizes.begin(), v.sizes.end());
    auto by_row = sizes;
    if (is_row) {
      by_row.back() = 1;
    }
    const bool all = own == sizes, one = items(v) == 1;
    const bool a_number = is_row ? one || own == by_row : true;
    if (is_row && !all && !a_number && (items(v) != columns_ || own.back() != columns_)) {
      return std::nullopt;
    }
    if (!is_row && !all && !one) {
      return std::nullopt;
    }
    if (const auto* m = made(value)) {
      const bool fits = m->is_row ? is_row && all : a_number && (items(v) == rows_);
      return fits ? std::make_optional(m->in) : std::nullopt;
    }
    if (touched(v.buffer)) {
      return std::nullopt;
    }
    return load(value, own, a_number && !(is_row && all), one);
  }

  std::optional<RowRegister> load(int value, const std::vector<int64_t>& own, bool a_number, bool one) {
    const auto& v = t_.values[value];
    for (const auto& [known, place] : loaded_) {
      if (known == value && places_[place].number == a_number) {
        return load_register_[place];
      }
    }
    RowPlace place;
    place.bf16 = v.dtype == caffe2::TypeMeta::Make<c10::BFloat16>();
    place.number = a_number;
    if (!a_number && (v.sizes.empty() || (v.sizes.back() > 1 && v.strides.back() != 1))) {
      return std::nullopt;
    }
    const auto n = items(v) / (a_number ? 1 : columns_);
    if (n != 1 && n != rows_) {
      return std::nullopt;
    }
    if (!one && n == rows_ && rows_ > 1) {
      lay_out(place, own, std::vector<int64_t>(v.strides), a_number);
    }
    const auto to = fresh(a_number);
    places_.push_back(std::move(place));
    place_values_.push_back(value);
    const int index = static_cast<int>(places_.size()) - 1;
    loaded_.emplace_back(value, index);
    load_register_.resize(places_.size());
    load_register_[index] = to;
    push({RowOp::Load, to, {}, {}, index});
    return to;
  }

  // Where the rows begin.
  void lay_out(RowPlace& place, const std::vector<int64_t>& own, std::vector<int64_t> strides, bool a_number) const {
    strides.insert(strides.begin(), own.size() - strides.size(), 0);
    const size_t dims = a_number && own.back() != 1 ? own.size() : own.size() - 1;  // those that count rows
    std::vector<int64_t> at(static_cast<size_t>(rows_)), where(dims, 0);
    int64_t offset = 0;
    for (auto& a : at) {
      a = offset;
      for (size_t d = dims; d-- > 0;) {
        offset += strides[d];
        if (++where[d] < own[d]) {
          break;
        }
        offset -= own[d] * strides[d];
        where[d] = 0;
      }
    }
    place.step = at[1];
    for (size_t i = 0; i < at.size(); ++i) {
      if (at[i] != place.step * static_cast<int64_t>(i)) {
        place.rows = at;
        return;
      }
    }
    if (place.step == 0) {
      place.rows = at;  // one row for all, seen as many: read it for each
    }
  }

  void store(const Made& m) {
    const auto& v = t_.values[m.value];
    RowPlace place;
    place.bf16 = v.dtype == caffe2::TypeMeta::Make<c10::BFloat16>();
    place.number = !m.is_row;
    place.written = true;
    place.step = m.is_row ? columns_ : 1;
    places_.push_back(place);
    place_values_.push_back(m.value);
    steps_.push_back({{RowOp::Store, {}, m.in, {}, static_cast<int>(places_.size()) - 1}, m.after});
  }

  RowRegister number(float x) {
    numbers_.push_back(x);
    return {true, static_cast<int>(numbers_.size()) - 1};
  }
  RowRegister fresh(bool a_number) {
    return a_number ? number(0) : RowRegister{false, vectors_++};
  }
  void push(RowStep s) {
    steps_.push_back({s, steps_.size()});
  }
  RowRegister step(RowOp op, bool is_row, RowRegister a, RowRegister b) {
    const auto to = fresh(!is_row);
    push({op, to, a, b, -1});
    return to;
  }
  // The value stands in that register, once it has the value's precision.
  bool make(int value, RowRegister from, bool is_row, bool exact = false) {
    if (from.number == is_row) {
      return false;  // a copy that repeats a number along the row
    }
    const bool narrow = t_.values[value].dtype == caffe2::TypeMeta::Make<c10::BFloat16>();
    const auto in = narrow && !exact ? step(RowOp::Round, is_row, from, {}) : from;
    made_.push_back({value, in, is_row, steps_.empty() ? 0 : steps_.size() - 1});
    return true;
  }

  const Tape& t_;
  int begin_;
  int count_ = 0;
  int64_t rows_, columns_;
  std::vector<Placed> steps_;
  std::vector<RowPlace> places_;
  std::vector<int> place_values_;
  std::vector<float> numbers_;
  int vectors_ = 0;
  std::vector<Made> made_;
  std::vector<std::pair<int, int>> loaded_;  // value, place
  std::vector<RowRegister> load_register_;
};

}  // namespace

bool is_row_call(const std::string& name) {
  return name == kPower || is_reduction(name) || unary_ops().count(name) != 0 || binary_ops().count(name) != 0;
}

std::optional<RowChain> read_row_chain(const Tape& tape, int node, int end, bool keep, int fewest,
                                       const RowProgram* like) {
  Reader reader(tape, node, like);
  for (int n = node; n < end && reader.add(n);) {
    ++n;
  }
  return reader.count() < fewest ? std::nullopt : std::make_optional(reader.finish(keep));
}

std::vector<RowChain> find_row_chains(const Tape& tape, int most) {
  std::vector<RowChain> found;
  const int end = static_cast<int>(tape.nodes.size());
  for (int n = 0; n < end && static_cast<int>(found.size()) < most;) {
    auto chain = read_row_chain(tape, n, end, false);
    int right = 0;
    while (chain && (right = prove_row_chain(tape, *chain)) <= chain->end - n) {
      chain = read_row_chain(tape, n, n + right, false);  // what comes before the call that differs
    }
    if (chain) {
      n = chain->end + 1;
      found.push_back(std::move(*chain));
    } else {
      ++n;
    }
  }
  return found;
}

}  // namespace graphmode
