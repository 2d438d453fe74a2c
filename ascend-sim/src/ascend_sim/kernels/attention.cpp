// Fused attention for inference: both versions, and the two older ops that became one. Arguments and their meanings:
// op-plugin docs, npu_fused_infer_attention_score.md, npu_fused_infer_attention_score_v2.md,
// npu_incre_flash_attention.md and npu_prompt_flash_attention.md; shapes of results:
// FusedInferAttentionScoreKernelNpuOpApi.cpp.
#include <ATen/ATen.h>

#include "attend.h"
#include "reference.h"

namespace sim {
namespace {

using at::Tensor;
using torch::jit::Stack;

// What the ops call differently; "" is what one has not.
struct Names {
  const char *heads, *scale, *lse, *queries, *keys;
  const char *key_scale, *key_offset, *key_mode, *value_scale, *value_offset, *value_mode;
  std::vector<const char*> refused;
};
const Names kFirst = {"num_heads",
                      "scale",
                      "softmax_lse_flag",
                      "actual_seq_lengths",
                      "actual_seq_lengths_kv",
                      "key_antiquant_scale",
                      "key_antiquant_offset",
                      "key_antiquant_mode",
                      "value_antiquant_scale",
                      "value_antiquant_offset",
                      "value_antiquant_mode",
                      {"dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2",
                       "antiquant_scale", "antiquant_offset", "query_padding_size", "kv_padding_size",
                       "key_shared_prefix", "value_shared_prefix", "actual_shared_prefix_len"}};
const Names kSecond = {
    "num_query_heads",
    "softmax_scale",
    "return_softmax_lse",
    "actual_seq_qlen",
    "actual_seq_kvlen",
    "dequant_scale_key",
    "dequant_offset_key",
    "key_quant_mode",
    "dequant_scale_value",
    "dequant_offset_value",
    "value_quant_mode",
    {"dequant_scale_query", "dequant_scale_key_rope", "quant_scale_out", "quant_offset_out", "quant_scale_p"}};
const Names kDecode = {"num_heads",
                       "scale_value",
                       "",
                       "",
                       "actual_seq_lengths",
                       "",
                       "",
                       "",
                       "",
                       "",
                       "",
                       {"padding_mask", "antiquant_scale", "antiquant_offset", "dequant_scale1", "quant_scale1",
                        "dequant_scale2", "quant_scale2", "quant_offset2", "kv_padding_size"}};
const Names kPrefill = {"num_heads",
                        "scale_value",
                        "",
                        "actual_seq_lengths",
                        "actual_seq_lengths_kv",
                        "",
                        "",
                        "",
                        "",
                        "",
                        "",
                        {"padding_mask", "deq_scale1", "quant_scale1", "deq_scale2", "quant_scale2", "quant_offset2"}};

struct Layouts {
  std::string in, out;
};

Layouts layouts_of(const Arguments& call) {
  const std::string layout = call["input_layout"].toStringRef();
  static const std::set<std::string> known = {"BSH",       "BSND",    "BNSD",      "TND",       "NTD",
                                              "BNSD_BSND", "NSD",     "BSH_BNSD",  "BSND_BNSD", "NTD_TND",
                                              "BSH_NBSD",  "TND_NTD", "BSND_NBSD", "BNSD_NBSD"};
  TORCH_CHECK(known.count(layout) > 0, call.op(), " has no input_layout ", layout);
  const auto line = layout.find('_');
  return line == std::string::npos ? Layouts{layout, layout} : Layouts{layout.substr(0, line), layout.substr(line + 1)};
}

bool is_packed(const std::string& layout) {
  return layout == "TND" || layout == "NTD";
}

// One call, its tensors seen by heads.
struct Attention {
  Attention(const Arguments& call, const Names& names);
  std::pair<Tensor, Tensor> results() const;
  void write(Tensor out, Tensor lse) const;

  std::string op;
  Layouts layouts;
  int64_t heads, key_heads, mode, before, after, sequences, width;
  Tensor query, key, value, query_rope, key_rope;  // [sequences, heads, rows, width]; a cache: [blocks, heads, ...]
  Tensor table, mask, bias, sink, key_scale, key_offset, value_scale, value_offset;
  std::optional<std::vector<int64_t>> queries, keys;
  double scale;
  bool wants_lse;
  at::ScalarType dtype;

 private:
  int64_t length(const std::optional<std::vector<int64_t>>& given, int64_t sequence, int64_t otherwise) const;
  Attend how(int64_t sequence, int64_t rows, int64_t columns) const;
  Tensor of_cache(const Tensor& whole, int64_t sequence, int64_t first, int64_t rows) const;
};

Tensor dequantised(const Tensor& rows, const Tensor& scale, const Tensor& offset) {
  if (!scale.defined())
    return rows;
  // One for the tensor, or for each channel of each head.
  const auto fitted = [&](const Tensor& t) {
    return (t.numel() == 1 ? t.reshape({1, 1, 1}) : t.reshape({rows.size(0), 1, rows.size(2)})).to(at::kFloat);
  };
  Tensor wide = rows.to(at::kFloat);
  if (offset.defined())
    wide = wide + fitted(offset);
  return wide * fitted(scale);
}

Attention::Attention(const Arguments& call, const Names& names) : op(call.op()), layouts(layouts_of(call)) {
  for (const char* name : names.refused)
    TORCH_CHECK(!call.has(name), op, " with ", name, " is not emulated");
  heads = call[names.heads].toInt();
  key_heads = call["num_key_value_heads"].toInt() == 0 ? heads : call["num_key_value_heads"].toInt();
  TORCH_CHECK(heads > 0 && key_heads > 0 && heads % key_heads == 0, op, ": ", heads, " heads can't share ", key_heads,
              " key heads");
  constexpr int64_t all = 2147483647;
  mode = call.integer("sparse_mode", 0);
  TORCH_CHECK(mode >= 0 && mode <= 4, op, " with sparse_mode ", mode, " is not emulated: 0 to 4 are");
  before = call.integer("pre_tokens", all);
  after = call.integer("next_tokens", all);
  scale = call[names.scale].toDouble();
  wants_lse = call.has(names.lse) && call[names.lse].toBool();
  queries = call.integers(names.queries);
  keys = call.integers(names.keys);
  table = call.tensor("block_table");
  mask = call.tensor("atten_mask");
  bias = call.tensor("pse_shift");
  sink = call.tensor("learnable_sink");
  key_scale = call.tensor(names.key_scale);
  key_offset = call.tensor(names.key_offset);
  value_scale = call.tensor(names.value_scale);
  value_offset = call.tensor(names.value_offset);
  TORCH_CHECK(!key_scale.defined() || (call[names.key_mode].toInt() == 0 && call[names.value_mode].toInt() == 0), op,
              " with ", names.key_mode, " ", call[names.key_mode].toInt(), " is not emulated: 0, by channel, is");

  const Tensor given = call["query"].toTensor();
  dtype = given.scalar_type();
  TORCH_CHECK(dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat, op, " with queries of ", dtype,
              " is not emulated: float16, bfloat16 and float32 are");
  const Tensor key_given = call["key"].toTensor(), value_given = call["value"].toTensor();
  TORCH_CHECK(key_given.scalar_type() == dtype || (key_given.scalar_type() == at::kChar && key_scale.defined()), op,
              ": queries are ", dtype, ", keys ", key_given.scalar_type(), " without a scale");
  const int64_t dimensions = layouts.in == "BSND" || layouts.in == "BNSD" ? 4 : 3;
  TORCH_CHECK(given.dim() == dimensions, op, ": queries of layout ", layouts.in, " have ", dimensions,
              " dimensions, not ", given.sizes());
  query = by_heads(given, layouts.in, heads);
  TORCH_CHECK(query.size(1) == heads, op, ": queries ", given.sizes(), " of layout ", layouts.in, " have ",
              query.size(1), " heads, not ", heads);
  query_rope = call.tensor("query_rope");
  key_rope = call.tensor("key_rope");
  TORCH_CHECK(query_rope.defined() == key_rope.defined(), op, ": query_rope and key_rope go together");
  const auto keys_by_heads = [&](const Tensor& t) {
    TORCH_CHECK(table.defined() ? t.dim() >= 3 && t.dim() <= 5 : t.dim() == given.dim(), op, ": keys and values are ",
                t.sizes(), ", queries ", given.sizes());
    const Tensor seen = table.defined() ? cache_by_heads(t, key_heads) : by_heads(t, layouts.in, key_heads);
    TORCH_CHECK(seen.size(1) == key_heads, op, ": keys or values ", t.sizes(), " have ", seen.size(1), " heads, not ",
                key_heads);
    return seen;
  };
  key = keys_by_heads(key_given);
  value = keys_by_heads(value_given);
  width = value.size(3);
  TORCH_CHECK(key.size(3) == query.size(3), op, ": a query is ", query.size(3), " wide, a key ", key.size(3));
  if (query_rope.defined()) {
    query_rope = by_heads(query_rope, layouts.in, heads);
    key_rope = keys_by_heads(key_rope);
  }

  const bool packed = is_packed(layouts.in);
  TORCH_CHECK(!packed || (queries && keys), op, ": layout ", layouts.in, " needs ", names.queries, " and ", names.keys);
  TORCH_CHECK(!packed || !bias.defined(), op, ": layout ", layouts.in, " has no pse_shift");
  sequences = packed ? static_cast<int64_t>(queries->size()) : query.size(0);
  if (packed) {
    TORCH_CHECK(std::is_sorted(queries->begin(), queries->end()), op, ": ", names.queries, " of layout ", layouts.in,
                " are sums that grow, not ", c10::IntArrayRef(*queries));
    TORCH_CHECK(queries->empty() || queries->back() <= query.size(2), op, ": ", names.queries, " end at ",
                queries->back(), " of ", query.size(2), " tokens");
    TORCH_CHECK(static_cast<int64_t>(keys->size()) >= sequences, op, ": ", sequences, " sequences and ", keys->size(),
                " ", names.keys);
    TORCH_CHECK(table.defined() || std::is_sorted(keys->begin(), keys->end()), op, ": ", names.keys, " of layout ",
                layouts.in, " are sums that grow, not ", c10::IntArrayRef(*keys));
  }
  for (const auto* lengths : {&queries, &keys}) {
    TORCH_CHECK(!*lengths || (*lengths)->size() == 1 || static_cast<int64_t>((*lengths)->size()) >= sequences, op, ": ",
                sequences, " sequences and ", (*lengths)->size(), " lengths");
  }
  if (table.defined()) {
    TORCH_CHECK(keys, op, ": a block_table needs ", names.keys);
    TORCH_CHECK(table.dim() == 2 && table.size(0) >= sequences, op, ": block_table ", table.sizes(), " for ", sequences,
                " sequences");
    TORCH_CHECK(call["block_size"].toInt() == key.size(2), op, ": block_size ", call["block_size"].toInt(),
                " and a cache of blocks of ", key.size(2));
    for (int64_t i = 0; i < sequences; ++i) {
      TORCH_CHECK(length(keys, i, 0) <= table.size(1) * key.size(2), op, ": ", length(keys, i, 0), " keys in ",
                  table.size(1), " blocks of ", key.size(2));
    }
  }
  if (!packed && query.size(2) == 1 && !query_rope.defined() && mode >= 2) {
    mode = 0;  // of no effect with one query
    mask = Tensor();
  }
  if (mode >= 2) {
    TORCH_CHECK(mask.defined() && mask.dim() >= 2 && mask.size(-1) == 2048 && mask.size(-2) == 2048, op,
                ": sparse_mode ", mode, " needs an atten_mask of [2048, 2048]");
  }
  TORCH_CHECK(mode != 1 || mask.defined(), op, ": sparse_mode 1 needs an atten_mask");
}

// The i-th sequence's length; one that is given alone is all sequences'.
int64_t Attention::length(const std::optional<std::vector<int64_t>>& given, int64_t sequence, int64_t otherwise) const {
  if (!given)
    return otherwise;
  return given->size() == 1 ? given->front() : (*given)[static_cast<size_t>(sequence)];
}

std::pair<Tensor, Tensor> Attention::results() const {
  const int64_t rows = query.size(2), tokens = query.size(0);
  std::vector<int64_t> out;
  if (layouts.out == "BSH")
    out = {tokens, rows, heads * width};
  if (layouts.out == "BSND")
    out = {tokens, rows, heads, width};
  if (layouts.out == "BNSD")
    out = {tokens, heads, rows, width};
  if (layouts.out == "NBSD")
    out = {heads, tokens, rows, width};
  if (layouts.out == "TND")
    out = {rows, heads, width};
  if (layouts.out == "NTD" || layouts.out == "NSD")
    out = {heads, rows, width};
  std::vector<int64_t> lse = {0};
  if (wants_lse)
    lse = is_packed(layouts.in) ? std::vector<int64_t>{rows, heads, 1} : std::vector<int64_t>{tokens, heads, rows, 1};
  return {at::empty(out, query.options().dtype(dtype)), at::empty(lse, query.options().dtype(at::kFloat))};
}

Tensor Attention::of_cache(const Tensor& whole, int64_t sequence, int64_t first, int64_t rows) const {
  if (table.defined())
    return paged(whole, table[sequence], rows);
  return whole[is_packed(layouts.in) ? 0 : sequence].narrow(1, first, rows);
}

Attend Attention::how(int64_t sequence, int64_t rows, int64_t columns) const {
  Attend made;
  made.scale = scale;
  made.sink = sink;
  constexpr int64_t all = 2147483647;
  if (mode == 2)
    made.band = Band{0, all, 0};
  if (mode == 3)
    made.band = Band{columns - rows, all, 0};
  if (mode == 4)
    made.band = Band{columns - rows, before, after};
  if (mode == 0 && mask.defined() && query.size(2) > 1)
    made.band = Band{0, before, after};
  if (mode < 2 && mask.defined()) {
    Tensor own = mask;
    if (own.dim() == 2 && query.size(2) == 1 && !is_packed(layouts.in))
      own = own.unsqueeze(1);  // [sequences, keys]
    if (own.dim() == 4)
      own = own.squeeze(1);
    if (own.dim() == 3)
      own = own[own.size(0) == 1 ? 0 : sequence];
    made.mask = own.narrow(0, 0, rows).narrow(1, 0, columns);
  }
  if (bias.defined())
    made.bias = bias[bias.size(0) == 1 ? 0 : sequence].narrow(1, 0, rows).narrow(2, 0, columns);
  return made;
}

void Attention::write(Tensor out, Tensor lse) const {
  const bool packed = is_packed(layouts.in);
  const Tensor seen = by_heads(out, layouts.out, heads);
  seen.zero_();  // of queries behind their sequence's length
  Tensor sums;   // [sequences, heads, rows]
  if (wants_lse) {
    sums = packed ? lse.squeeze(-1).transpose(0, 1).unsqueeze(0) : lse.squeeze(-1);
    sums.fill_(std::numeric_limits<float>::infinity());
  }
  for (int64_t i = 0; i < sequences; ++i) {
    const auto before_it = [&](const std::vector<int64_t>& sums) {
      return i == 0 ? 0 : sums[static_cast<size_t>(i - 1)];
    };
    const int64_t first = packed ? before_it(*queries) : 0, place = packed ? 0 : i;
    // With one query its length says nothing.
    const int64_t rows = packed               ? (*queries)[static_cast<size_t>(i)] - first
                         : query.size(2) == 1 ? 1
                                              : length(queries, i, query.size(2));
    const bool sums_of_keys = packed && !table.defined();
    const int64_t first_key = sums_of_keys ? before_it(*keys) : 0;
    const int64_t columns = sums_of_keys ? (*keys)[static_cast<size_t>(i)] - first_key : length(keys, i, key.size(2));
    if (rows == 0)
      continue;
    Tensor q = query[place].narrow(1, first, rows).to(at::kFloat);
    Tensor k = dequantised(of_cache(key, i, first_key, columns), key_scale, key_offset);
    const Tensor v = dequantised(of_cache(value, i, first_key, columns), value_scale, value_offset);
    if (query_rope.defined()) {
      q = at::cat({q, query_rope[place].narrow(1, first, rows).to(at::kFloat)}, -1);
      k = at::cat({k.to(at::kFloat), of_cache(key_rope, i, first_key, columns).to(at::kFloat)}, -1);
    }
    const Attended found = attend(q, k, v, how(i, rows, columns));
    seen[place].narrow(1, first, rows).copy_(found.out);
    if (wants_lse)
      sums[place].narrow(1, first, rows).copy_(found.lse);
  }
}

template <const Names& names>
void shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  auto [out, lse] = Attention(call, names).results();
  stack->emplace_back(std::move(out));
  stack->emplace_back(std::move(lse));
}

template <const Names& names>
void values(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Attention attention(call, names);
  const auto [out, lse] = attention.results();
  attention.write(out, lse);
  stack->emplace_back(out);
  stack->emplace_back(lse);
}

// Of the variant that is given its results; the sums are touched only where they are asked for.
template <const Names& names>
void check_out(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Attention attention(call, names);
  const auto [out, lse] = attention.results();
  const auto given = call["out"].toTensorVector();
  TORCH_CHECK(given.size() == 2, call.op(), ": out is [attention_out, softmax_lse]");
  const auto check = [&](const char* name, const Tensor& one, const Tensor& wanted) {
    TORCH_CHECK(one.sizes().equals(wanted.sizes()) && one.scalar_type() == wanted.scalar_type(), call.op(), ": ", name,
                " is ", one.toString(), one.sizes(), ", not ", wanted.toString(), wanted.sizes());
  };
  check("attention_out", given[0], out);
  if (attention.wants_lse)
    check("softmax_lse", given[1], lse);
  stack->emplace_back(given[0]);
  stack->emplace_back(given[1]);
}

template <const Names& names>
void write_out(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const auto given = call["out"].toTensorVector();
  Attention(call, names).write(given.at(0), given.at(1));
  stack->emplace_back(given[0]);
  stack->emplace_back(given[1]);
}

// Bytes for the results in float32, as a device keeps them between its cores. No values decide: "max".
template <const Names& names>
void workspace(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Attention attention(call, names);
  stack->emplace_back(
      at::empty({attention.results().first.numel() * 4 + 1024}, attention.query.options().dtype(at::kByte)));
}

// Of the older ops: the result alone.
template <const Names& names>
void shape(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  shapes<names>(op, keys, stack);
  stack->pop_back();
}

template <const Names& names>
void value(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  values<names>(op, keys, stack);
  stack->pop_back();
}

template <const Names& names>
void older(Table& table, const std::string& op) {
  table.add_boxed("npu::" + op, c10::KernelFunction::makeFromBoxedFunction<&value<names>>(),
                  c10::KernelFunction::makeFromBoxedFunction<&shape<names>>());
}

template <const Names& names>
void version(Table& table, const std::string& op) {
  using c10::KernelFunction;
  table.add_boxed("npu::" + op, KernelFunction::makeFromBoxedFunction<&values<names>>(),
                  KernelFunction::makeFromBoxedFunction<&shapes<names>>());
  table
      .add_boxed("npu::" + op + ".out", KernelFunction::makeFromBoxedFunction<&write_out<names>>(),
                 KernelFunction::makeFromBoxedFunction<&check_out<names>>())
      .results_in_list = true;
  table.add_boxed("npu::_" + op + "_get_max_workspace", {}, KernelFunction::makeFromBoxedFunction<&workspace<names>>());
}

}  // namespace

void attention(Table& table) {
  version<kFirst>(table, "npu_fused_infer_attention_score");
  version<kSecond>(table, "npu_fused_infer_attention_score_v2");
  older<kDecode>(table, "npu_incre_flash_attention");
  older<kPrefill>(table, "npu_prompt_flash_attention");
}

}  // namespace sim
