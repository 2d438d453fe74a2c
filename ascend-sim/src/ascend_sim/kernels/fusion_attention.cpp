// Fused attention of training, forward alone: three versions. Arguments and their meanings: op-plugin docs,
// npu_fusion_attention.md and npu_fusion_attention_v3.md, and for pse_type MindSpeed's fusion_attention.md; shapes of
// results and what is refused there, too: FlashAttentionKernelNpuOpApi.cpp.
#include <ATen/ATen.h>

#include <set>

#include "attend.h"
#include "reference.h"

namespace sim {
namespace {

using at::Tensor;
using torch::jit::Stack;

constexpr int64_t kCopies = 8;  // of each softmax's highest score and sum, as the backward pass reads them

struct Results {
  Tensor out, highest, sum;
};

// One call, its tensors seen by heads.
struct Fusion {
  explicit Fusion(const Arguments& call);
  void check(const Arguments& call) const;
  Results results() const;
  Results values() const;

  std::string op, layout;
  bool packed, softmax_as_input;
  int64_t heads, mode, before, after;
  double scale, bias_scale;
  Tensor given, query, key, value;  // [sequences, heads, rows, width]
  Tensor mask, bias, sink;
  std::vector<int64_t> queries, keys;  // of packed sequences, where each ends

 private:
  Attend how(int64_t sequence, int64_t rows, int64_t columns) const;
  std::pair<Tensor, Tensor> by_sequence(const Results& made) const;
};

std::string upper(std::string text) {
  for (char& c : text)
    c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

// Integers, or in the third version a tensor that only the task can read.
std::vector<int64_t> ends(const c10::IValue& value) {
  if (value.isNone() || (value.isTensor() && value.toTensor().is_meta()))
    return {};
  if (!value.isTensor())
    return value.toIntVector();
  const Tensor wide = value.toTensor().to(at::kLong).contiguous();
  return {wide.data_ptr<int64_t>(), wide.data_ptr<int64_t>() + wide.numel()};
}

int64_t key_heads_of(const std::string& layout, const Tensor& query, const Tensor& key, int64_t heads) {
  if (layout == "BNSD" || layout == "TND")
    return key.size(1);
  return layout == "BSND" ? key.size(2) : key.size(2) / (query.size(2) / heads);
}

Fusion::Fusion(const Arguments& call)
    : op(call.op()),
      layout(upper(call.text("input_layout"))),
      packed(layout == "TND"),
      softmax_as_input(call.text("softmax_layout") == "TND"),
      heads(call.integer("head_num", 0)),
      mode(call.integer("sparse_mode", 0)),
      scale(call.number("scale")),
      given(call.tensor("query")),
      mask(call.tensor("atten_mask")),
      bias(call.tensor("pse")),
      sink(call.tensor("sink")),
      queries(ends(call["actual_seq_qlen"])),
      keys(ends(call["actual_seq_kvlen"])) {
  const bool second = op == "npu::npu_fusion_attention_v2";
  before = call[second ? "pre_tokens" : "pre_tockens"].toInt();
  after = call[second ? "next_tokens" : "next_tockens"].toInt();
  bias_scale = second && call.integer("pse_type", 1) == 0 ? 1 : scale;
  static const std::set<std::string> known = {"BSH", "SBH", "BSND", "BNSD", "TND"};
  TORCH_CHECK(known.count(layout) > 0, op, " has no input_layout ", layout);
  const Tensor key_given = call.tensor("key"), value_given = call.tensor("value");
  const int64_t dimensions = layout == "BSND" || layout == "BNSD" ? 4 : 3;
  for (const Tensor& t : {given, key_given, value_given}) {
    TORCH_CHECK(t.dim() == dimensions && t.scalar_type() == given.scalar_type(), op, ": layout ", layout, " has ",
                dimensions, " dimensions of one dtype, not ", t.toString(), t.sizes());
  }
  TORCH_CHECK(heads > 0 && (dimensions == 4 || packed || given.size(2) % heads == 0), op, ": head_num ", heads, " for ",
              given.sizes());
  const int64_t key_heads = key_heads_of(layout, given, key_given, heads);
  query = by_heads(given, layout, heads);
  key = by_heads(key_given, layout, key_heads);
  value = by_heads(value_given, layout, key_heads);
}

void Fusion::check(const Arguments& call) const {
  for (const char* name :
       {"padding_mask", "prefix", "query_rope", "key_rope", "q_start_idx", "kv_start_idx", "dropout_mask"})
    TORCH_CHECK(!call.has(name), op, " with ", name, " is not emulated");
  TORCH_CHECK(call.number("keep_prob") == 1, op, " with keep_prob ", call.number("keep_prob"),
              " is not emulated: 1, no dropout, is");
  TORCH_CHECK(call.integer("pse_type", 1) == 0 || call.integer("pse_type", 1) == 1, op, " with pse_type ",
              call.integer("pse_type", 1), " is not emulated: 0 and 1 are");
  TORCH_CHECK(mode >= 0 && mode <= 4, op, " with sparse_mode ", mode, " is not emulated: 0 to 4 are");
  TORCH_CHECK(call.text("softmax_layout").empty() || (softmax_as_input && packed), op,
              ": softmax_layout is TND, of input_layout TND, not ", call.text("softmax_layout"));
  TORCH_CHECK(query.size(1) == heads && key.size(1) > 0 && heads % key.size(1) == 0, op, ": head_num ", heads,
              ", queries of ", query.size(1), " heads and keys of ", key.size(1));
  TORCH_CHECK(key.size(3) == query.size(3) && key.size(0) == query.size(0) &&
                  value.sizes().slice(0, 3).equals(key.sizes().slice(0, 3)),
              op, ": by heads, queries are ", query.sizes(), ", keys ", key.sizes(), ", values ", value.sizes());
  TORCH_CHECK(packed == call.has("actual_seq_qlen") && packed == call.has("actual_seq_kvlen"), op,
              ": actual_seq_qlen and actual_seq_kvlen belong to input_layout TND, and it needs them");
  TORCH_CHECK(queries.size() == keys.size(), op, ": ", queries.size(), " lengths of queries and ", keys.size(),
              " of keys");
  TORCH_CHECK(mode == 0 || mode == 1 || !mask.defined() || (mask.size(-1) == 2048 && mask.size(-2) == 2048), op,
              ": sparse_mode ", mode, " needs an atten_mask of [2048, 2048], not ", mask.sizes());
  TORCH_CHECK(!packed || !bias.defined(), op, " with pse of input_layout TND is not emulated");
  TORCH_CHECK(!bias.defined() || (bias.dim() == 4 && bias.size(3) == key.size(2) &&
                                  (bias.size(2) == 1 || bias.size(2) == query.size(2))),
              op, " with pse of ", bias.defined() ? bias.sizes() : at::IntArrayRef(), " is not emulated: ", heads,
              " heads of [queries or 1, keys] are");
}

Results Fusion::results() const {
  std::vector<int64_t> out = given.sizes().vec(), softmax = {query.size(0), heads, query.size(2), kCopies};
  out.back() = value.size(3) * (layout == "BSH" || layout == "SBH" ? heads : 1);
  if (packed)
    softmax = {query.size(2), heads, kCopies};
  const auto wide = given.options().dtype(at::kFloat);
  return {at::empty(out, given.options()), at::empty(softmax, wide), at::empty(softmax, wide)};
}

// Without a mask everything is seen, whatever else was asked for.
Attend Fusion::how(int64_t sequence, int64_t rows, int64_t columns) const {
  Attend made;
  made.scale = scale;
  made.sink = sink;
  if (bias.defined())
    made.bias = bias[bias.size(0) == 1 ? 0 : sequence].to(at::kFloat) * bias_scale;
  if (!mask.defined())
    return made;
  constexpr int64_t all = 2147483647;
  if (mode == 0)
    made.band = Band{0, before, after};
  if (mode == 2)
    made.band = Band{0, all, 0};
  if (mode == 3)
    made.band = Band{columns - rows, all, 0};
  if (mode == 4)
    made.band = Band{columns - rows, before, after};
  if (mode < 2) {
    const Tensor own = mask.dim() == 4 ? mask[mask.size(0) == 1 ? 0 : sequence] : mask;
    made.mask = own.narrow(-2, 0, rows).narrow(-1, 0, columns);
  }
  return made;
}

// The softmax's results as [sequences, heads, rows, copies]. Packed, they are heads first whatever their sizes say, if
// the input's order is not asked for.
std::pair<Tensor, Tensor> Fusion::by_sequence(const Results& made) const {
  const auto seen = [&](const Tensor& t) {
    if (!packed)
      return t;
    return softmax_as_input ? t.transpose(0, 1).unsqueeze(0) : t.view({1, heads, query.size(2), kCopies});
  };
  return {seen(made.highest), seen(made.sum)};
}

Results Fusion::values() const {
  const Results made = results();
  const Tensor out = by_heads(made.out, layout, heads);
  const auto [highest, sum] = by_sequence(made);
  for (const Tensor& t : {out, highest, sum})
    t.zero_();  // of rows that no sequence has
  const int64_t sequences = packed ? static_cast<int64_t>(queries.size()) : query.size(0);
  int64_t first = 0, first_key = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t place = packed ? 0 : i;
    const int64_t rows = packed ? queries[static_cast<size_t>(i)] - first : query.size(2);
    const int64_t columns = packed ? keys[static_cast<size_t>(i)] - first_key : key.size(2);
    if (rows < 0 || columns < 0)
      break;  // zeros behind the last sequence
    const Attended found = attend(query[place].narrow(1, first, rows), key[place].narrow(1, first_key, columns),
                                  value[place].narrow(1, first_key, columns), how(i, rows, columns));
    out[place].narrow(1, first, rows).copy_(found.out);
    highest[place].narrow(1, first, rows).copy_(found.highest.unsqueeze(-1));
    sum[place].narrow(1, first, rows).copy_(found.sum.unsqueeze(-1));
    if (packed) {
      first += rows;
      first_key += columns;
    }
  }
  return made;
}

// How many numbers a dropout would draw: one for each query and key.
int64_t draws(const Fusion& fusion) {
  if (!fusion.packed)
    return fusion.query.size(0) * fusion.heads * fusion.query.size(2) * fusion.key.size(2);
  int64_t pairs = 0, first = 0, first_key = 0;
  for (size_t i = 0; i < fusion.queries.size(); ++i) {
    pairs += (fusion.queries[i] - first) * (fusion.keys[i] - first_key);
    first = fusion.queries[i];
    first_key = fusion.keys[i];
  }
  return fusion.heads * pairs;
}

void push(const Results& made, const Fusion& fusion, const Arguments& call, Stack* stack) {
  for (const Tensor& t : {made.out, made.highest, made.sum})
    stack->emplace_back(t);
  stack->emplace_back(at::empty({0}, fusion.given.options()));
  if (fusion.op == "npu::npu_fusion_attention_v3") {  // the seed and offset of a dropout that is not
    stack->emplace_back(at::zeros({1}, fusion.given.options().dtype(at::kLong)));
    stack->emplace_back(at::zeros({1}, fusion.given.options().dtype(at::kLong)));
    return;
  }
  stack->emplace_back(call.integer("seed", 0));
  stack->emplace_back(call.integer("offset", 0));
  stack->emplace_back(draws(fusion));
}

void shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Fusion fusion(call);
  fusion.check(call);
  push(fusion.results(), fusion, call, stack);
}

void values(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Fusion fusion(call);
  push(fusion.values(), fusion, call, stack);
}

}  // namespace

void fusion_attention(Table& table) {
  using c10::KernelFunction;
  for (const char* op : {"npu::npu_fusion_attention", "npu::npu_fusion_attention_v2", "npu::npu_fusion_attention_v3"}) {
    table.add_boxed(op, KernelFunction::makeFromBoxedFunction<&values>(),
                    KernelFunction::makeFromBoxedFunction<&shapes>());
  }
}

}  // namespace sim
