// The attention ops of ATB, by op-plugin's ops/atb/*.cpp, and what else torch_npu's library for ATB has for attention.
// Tokens are packed, a cache is [blocks, rows, heads, width], and lengths are one for each sequence.
#include <ATen/ATen.h>

#include <numeric>

#include "attend.h"
#include "reference.h"

namespace sim {
namespace {

using at::Tensor;

// [heads, tokens, width] of [tokens, heads, width] or [tokens, heads * width].
Tensor heads_first(const Tensor& tokens, int64_t heads) {
  return tokens.reshape({tokens.size(0), heads, -1}).transpose(0, 1);
}

std::vector<int64_t> integers(const Tensor& lengths) {
  const Tensor wide = lengths.to(at::kLong).contiguous();
  return {wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel()};
}

int64_t sum(const std::vector<int64_t>& lengths) {
  int64_t all = 0;
  for (const int64_t one : lengths)
    all += one;
  return all;
}

void check_heads(const char* op, int64_t heads, int64_t key_heads) {
  TORCH_CHECK(heads > 0 && key_heads > 0 && heads % key_heads == 0, op, ": ", heads, " heads can't share ", key_heads,
              " key heads");
}

// One query for each sequence. PagedAttentionAtb.cpp
void paged_attention_(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, int64_t key_heads,
                      int64_t heads, double scale, const Tensor& table, const Tensor& lengths, Tensor& out,
                      const std::optional<Tensor>&) {
  const Tensor keys = key_cache.transpose(1, 2), values = value_cache.transpose(1, 2);
  const Tensor queries = query.reshape({query.size(0), heads, -1}).unsqueeze(2);
  const Tensor places = out.view({out.size(0), heads, 1, -1});
  const auto rows = integers(lengths);
  Attend how;
  how.scale = scale;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    places[at].copy_(attend(queries[at], paged(keys, table[at], rows[i]), paged(values, table[at], rows[i]), how).out);
  }
}

void check_paged_attention(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, int64_t key_heads,
                           int64_t heads, double, const Tensor& table, const Tensor& lengths, Tensor& out,
                           const std::optional<Tensor>&) {
  const char* op = "_npu_paged_attention";
  check_heads(op, heads, key_heads);
  TORCH_CHECK(key_cache.dim() == 4 && key_cache.size(2) == key_heads && value_cache.dim() == 4 &&
                  value_cache.size(2) == key_heads,
              op, ": caches are [blocks, rows, ", key_heads, ", width], not ", key_cache.sizes(), " and ",
              value_cache.sizes());
  TORCH_CHECK(lengths.numel() <= query.size(0) && lengths.numel() <= table.size(0), op, ": ", lengths.numel(),
              " lengths, ", query.size(0), " queries and ", table.size(0), " rows of the block table");
  TORCH_CHECK(out.size(0) == query.size(0) && out.scalar_type() == query.scalar_type(), op, ": the result is ",
              out.toString(), out.sizes(), ", the queries are ", query.toString(), query.sizes());
}

Tensor paged_attention_workspace(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                                 int64_t key_heads, int64_t heads, double scale, const Tensor& table,
                                 const Tensor& lengths, Tensor& out) {
  check_paged_attention(query, key_cache, value_cache, key_heads, heads, scale, table, lengths, out, std::nullopt);
  return at::empty({out.numel() * 4 + 1024}, at::TensorOptions().dtype(at::kByte).device(at::kMeta));
}

// Values are the first columns of the keys. PagedAttentionMlaAtb.cpp
void paged_attention_mla(const Tensor& query, const Tensor& key_cache, int64_t key_heads, int64_t heads, double scale,
                         const Tensor& table, const Tensor& lengths, int64_t value_width, Tensor& out) {
  paged_attention_(query, key_cache, key_cache.narrow(-1, 0, value_width), key_heads, heads, scale, table, lengths, out,
                   std::nullopt);
}

void check_paged_attention_mla(const Tensor& query, const Tensor& key_cache, int64_t key_heads, int64_t heads,
                               double scale, const Tensor& table, const Tensor& lengths, int64_t value_width,
                               Tensor& out) {
  TORCH_CHECK(value_width <= key_cache.size(-1), "_npu_paged_attention_mla: values of ", value_width, " in ",
              key_cache.sizes());
  check_paged_attention(query, key_cache, key_cache, key_heads, heads, scale, table, lengths, out, std::nullopt);
}

// Each sequence over itself. SelfAttentionAtb.cpp, SelfAttentionUnpadAtb.cpp
void sequences(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask, const Tensor& lengths,
               double scale, int64_t heads, int64_t key_heads, Tensor& out) {
  const Tensor q = heads_first(query, heads), k = heads_first(key, key_heads), v = heads_first(value, key_heads);
  const Tensor places = out.view({out.size(0), heads, -1}).transpose(0, 1);
  int64_t first = 0;
  for (const int64_t rows : integers(lengths)) {
    Attend how;
    how.scale = scale;
    if (mask.defined())
      how.mask = mask.narrow(-2, 0, rows).narrow(-1, 0, rows);
    places.narrow(1, first, rows)
        .copy_(attend(q.narrow(1, first, rows), k.narrow(1, first, rows), v.narrow(1, first, rows), how).out);
    first += rows;
  }
}

// What is not zero in the mask is not seen: a device adds it, as -inf or as so many times -10000.
void flash_attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
                     const Tensor& lengths, double scale, int64_t heads, int64_t key_heads, Tensor& out) {
  sequences(query, key, value, mask, lengths, scale, heads, key_heads, out);
}

void check_flash_attention(const Tensor& query, const Tensor&, const Tensor&, const Tensor& mask, const Tensor& lengths,
                           double, int64_t heads, int64_t key_heads, Tensor& out) {
  const char* op = "_npu_flash_attention";
  check_heads(op, heads, key_heads);
  TORCH_CHECK(mask.dim() >= 2, op, ": a mask is [queries, keys], not ", mask.sizes());
  TORCH_CHECK(!lengths.is_cpu() || sum(integers(lengths)) <= query.size(0), op, ": sequences of ", lengths, " in ",
              query.size(0), " tokens");
  TORCH_CHECK(out.numel() == query.numel() / query.size(0) * out.size(0), op, ": the result is ", out.sizes());
}

void flash_attention_unpad(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& lengths,
                           double scale, int64_t heads, int64_t key_heads, Tensor& out) {
  sequences(query, key, value, Tensor(), lengths, scale, heads, key_heads, out);
}

// New tokens of each sequence over all of it, from a cache; each token sees what came before it. The mask is the
// compressed one, that says no more. SelfAttentionQlensAtb.cpp
void flash_attention_qlens(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& table,
                           const Tensor&, const Tensor& lengths, const Tensor& all_lengths, int64_t key_heads,
                           int64_t heads, double scale, Tensor& out) {
  const Tensor q = heads_first(query, heads), places = out.view({out.size(0), heads, -1}).transpose(0, 1);
  const Tensor keys = key_cache.transpose(1, 2), values = value_cache.transpose(1, 2);
  const auto rows = integers(lengths), columns = integers(all_lengths);
  int64_t first = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Tensor blocks = table[static_cast<int64_t>(i)];
    Attend how;
    how.scale = scale;
    how.band = Band{columns[i] - rows[i], columns[i], 0};
    places.narrow(1, first, rows[i])
        .copy_(
            attend(q.narrow(1, first, rows[i]), paged(keys, blocks, columns[i]), paged(values, blocks, columns[i]), how)
                .out);
    first += rows[i];
  }
}

// How many rows of each sequence a load asks for; sums may begin with a zero.
std::vector<int64_t> rows_to_load(const Tensor& lengths, const Tensor& table, bool sums) {
  std::vector<int64_t> rows = integers(lengths);
  if (!sums)
    return rows;
  if (lengths.numel() == table.size(0) + 1)
    rows.erase(rows.begin());
  std::adjacent_difference(rows.begin(), rows.end(), rows.begin());
  return rows;
}

// PagedCacheLoadAtb.cpp and op-plugin's _atb_api_docs.py: the rows of each sequence, one sequence behind the other. A
// sequence's first row is that of the block in which its start lies, as in op-plugin's test_atb_paged_cache_load.py.
std::tuple<Tensor, Tensor> paged_cache_load_out(const Tensor& key_cache, const Tensor& value_cache, const Tensor& table,
                                                const Tensor& lengths, const std::optional<Tensor>& starts, bool sums,
                                                Tensor& key, Tensor& value) {
  const auto first_of = given(starts) ? integers(*starts) : std::vector<int64_t>(static_cast<size_t>(table.size(0)));
  int64_t first = 0, i = 0;
  for (const int64_t rows : rows_to_load(lengths, table, sums)) {
    const int64_t block = first_of[static_cast<size_t>(i)] / key_cache.size(1);
    const Tensor blocks = table[i].narrow(0, block, table.size(1) - block);
    for (const auto& [cache, out] : {std::pair(&key_cache, &key), std::pair(&value_cache, &value)}) {
      out->narrow(0, first, rows).copy_(paged(cache->transpose(1, 2), blocks, rows).transpose(0, 1));
    }
    first += rows;
    ++i;
  }
  return {key, value};
}

// op-plugin docs: npu_attention_update.md: what parts of the keys gave, by the sums of their softmaxes. Infinity is the
// sum of a part in which nothing was seen, as attention ops give it: CANN's ops-transformer, decode_update.h.
std::tuple<Tensor, Tensor> attention_update(at::TensorList sums, at::TensorList outs, int64_t type) {
  TORCH_CHECK(!sums.empty() && sums.size() == outs.size(), "npu_attention_update: ", sums.size(), " lse and ",
              outs.size(), " local_out");
  TORCH_CHECK(type == 0 || type == 1, "npu_attention_update has no update_type ", type);
  const double blind = std::numeric_limits<double>::infinity();
  const Tensor given = at::stack(sums).to(at::kFloat), parts = given.masked_fill(given == blind, -blind);
  const Tensor sum = parts.logsumexp(0, false);
  const Tensor weights = (parts - sum).exp().unsqueeze(-1);
  const Tensor out = (at::stack(outs).to(at::kFloat) * weights).sum(0).to(outs[0].scalar_type());
  return {out, type == 1 ? sum : at::empty({0}, at::kFloat)};
}

std::tuple<Tensor, Tensor> attention_update_shapes(at::TensorList sums, at::TensorList outs, int64_t) {
  for (size_t i = 0; i < std::min(sums.size(), outs.size()); ++i) {
    TORCH_CHECK(sums[i].dim() == 1 && outs[i].dim() == 2 && outs[i].size(0) == sums[i].size(0) &&
                    outs[i].sizes().equals(outs[0].sizes()),
                "npu_attention_update: lse ", sums[i].sizes(), " and local_out ", outs[i].sizes());
  }
  return {at::empty_like(outs[0]), at::empty_like(sums[0])};
}

std::tuple<Tensor, Tensor> paged_cache_load(const Tensor& key_cache, const Tensor& value_cache, const Tensor& table,
                                            const Tensor& lengths, const std::optional<Tensor>& starts, bool sums) {
  const int64_t all = sum(rows_to_load(lengths, table, sums));
  Tensor key = at::empty({all, key_cache.size(2), key_cache.size(3)}, key_cache.options());
  Tensor value = at::empty({all, value_cache.size(2), value_cache.size(3)}, value_cache.options());
  return paged_cache_load_out(key_cache, value_cache, table, lengths, starts, sums, key, value);
}

// As many rows as the lengths say: known without the device where they lie on the host.
std::tuple<Tensor, Tensor> paged_cache_load_shape(const Tensor& key_cache, const Tensor& value_cache,
                                                  const Tensor& table, const Tensor& lengths,
                                                  const std::optional<Tensor>&, bool sums) {
  TORCH_CHECK_NOT_IMPLEMENTED(lengths.is_cpu(), "lengths on the device");
  const int64_t all = sum(rows_to_load(lengths, table, sums));
  return {at::empty({all, key_cache.size(2), key_cache.size(3)}, key_cache.options()),
          at::empty({all, value_cache.size(2), value_cache.size(3)}, value_cache.options())};
}

// RingMlaAtb.cpp: lengths are [queries; keys], or one row for both; results so far are merged in by their sums.
std::tuple<Tensor, Tensor> ring_mla_out(const Tensor& q_nope, const Tensor& q_rope, const Tensor& k_nope,
                                        const Tensor& k_rope, const Tensor& value, const Tensor& mask,
                                        const Tensor& lengths, int64_t heads, int64_t key_heads,
                                        const std::optional<Tensor>& previous,
                                        const std::optional<Tensor>& previous_lse, double scale,
                                        std::optional<c10::string_view>, std::optional<c10::string_view> mask_type,
                                        std::optional<c10::string_view>, std::optional<c10::string_view> calc_type,
                                        Tensor& out, Tensor& lse) {
  const bool causal = mask_type.has_value() && *mask_type == "mask_type_triu";
  const bool merges = calc_type.has_value() && *calc_type == "calc_type_default";
  const Tensor q = at::cat({q_nope, q_rope}, -1).transpose(0, 1), k = at::cat({k_nope, k_rope}, -1).transpose(0, 1);
  const Tensor v = value.transpose(0, 1), places = out.transpose(0, 1);
  const auto rows = integers(lengths.dim() == 2 ? lengths[0] : lengths);
  const auto columns = integers(lengths.dim() == 2 ? lengths[1] : lengths);
  int64_t first = 0, first_key = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    Attend how;
    how.scale = scale;
    if (causal)
      how.band = Band{columns[i] - rows[i], columns[i], 0};
    const Attended part = attend(q.narrow(1, first, rows[i]), k.narrow(1, first_key, columns[i]),
                                 v.narrow(1, first_key, columns[i]), how);
    Tensor found = part.out, sums = part.lse;
    if (merges) {
      const Tensor old = previous->transpose(0, 1).narrow(1, first, rows[i]).to(at::kFloat);
      const Tensor old_sums = previous_lse->narrow(1, first, rows[i]).to(at::kFloat);
      const double lowest = -std::numeric_limits<double>::infinity();
      sums = sums.masked_fill(sums == -lowest, lowest);  // nothing was seen
      const Tensor both = at::logaddexp(sums, old_sums);
      found = found * (sums - both).exp().unsqueeze(-1) + old * (old_sums - both).exp().unsqueeze(-1);
      sums = both;
    }
    places.narrow(1, first, rows[i]).copy_(found);
    lse.narrow(1, first, rows[i]).copy_(sums);
    first += rows[i];
    first_key += columns[i];
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor> ring_mla_shape(const Tensor& q_nope, const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor& value, const Tensor&, const Tensor& lengths, int64_t heads,
                                          int64_t key_heads, const std::optional<Tensor>& previous,
                                          const std::optional<Tensor>& previous_lse, double,
                                          std::optional<c10::string_view>, std::optional<c10::string_view>,
                                          std::optional<c10::string_view>, std::optional<c10::string_view> calc_type) {
  check_heads("npu_ring_mla", heads, key_heads);
  TORCH_CHECK(lengths.is_cpu(), "npu_ring_mla: seqlen is a tensor of the host");
  TORCH_CHECK(
      !calc_type.has_value() || *calc_type != "calc_type_default" || (previous.has_value() && previous_lse.has_value()),
      "npu_ring_mla: calc_type_default merges pre_out and prev_lse, which are not given");
  return {at::empty({q_nope.size(0), heads, value.size(2)}, q_nope.options()),
          at::empty({heads, q_nope.size(0)}, q_nope.options().dtype(at::kFloat))};
}

std::tuple<Tensor, Tensor> ring_mla(const Tensor& q_nope, const Tensor& q_rope, const Tensor& k_nope,
                                    const Tensor& k_rope, const Tensor& value, const Tensor& mask,
                                    const Tensor& lengths, int64_t heads, int64_t key_heads,
                                    const std::optional<Tensor>& previous, const std::optional<Tensor>& previous_lse,
                                    double scale, std::optional<c10::string_view> kernel_type,
                                    std::optional<c10::string_view> mask_type, std::optional<c10::string_view> layout,
                                    std::optional<c10::string_view> calc_type) {
  Tensor out = at::zeros({q_nope.size(0), heads, value.size(2)}, q_nope.options());
  Tensor lse = at::zeros({heads, q_nope.size(0)}, q_nope.options().dtype(at::kFloat));
  return ring_mla_out(q_nope, q_rope, k_nope, k_rope, value, mask, lengths, heads, key_heads, previous, previous_lse,
                      scale, kernel_type, mask_type, layout, calc_type, out, lse);
}

// LinearAtb.cpp: adds x^T weight to the sum, in float32.
void matmul_add_fp32(const Tensor& x, const Tensor& weight, Tensor& sum) {
  sum.add_(x.to(at::kFloat).transpose(0, 1).mm(weight.to(at::kFloat)));
}

void check_matmul_add_fp32(const Tensor& x, const Tensor& weight, Tensor& sum) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(0) == weight.size(0) && sum.scalar_type() == at::kFloat &&
                  sum.sizes().equals({x.size(1), weight.size(1)}),
              "_npu_matmul_add_fp32: x ", x.sizes(), ", weight ", weight.sizes(), ", C ", sum.toString(), sum.sizes());
}

}  // namespace

void paged_attention(Table& table) {
  table.add<&paged_attention_, &check_paged_attention>("atb::_npu_paged_attention");
  table.add_query<&paged_attention_workspace>("atb::_npu_paged_attention_get_workspace");
  table.add<&paged_attention_mla, &check_paged_attention_mla>("atb::_npu_paged_attention_mla");
  table.add<&flash_attention, &check_flash_attention>("atb::_npu_flash_attention");
  table.add<&flash_attention_unpad>("atb::_npu_flash_attention_unpad");
  table.add<&flash_attention_qlens>("atb::_npu_flash_attention_qlens");
  table.add<&paged_cache_load, &paged_cache_load_shape>("atb::npu_paged_cache_load");
  table.add<&paged_cache_load_out>("atb::npu_paged_cache_load.out");
  table.add<&attention_update, &attention_update_shapes>("npu::npu_attention_update");
  table.add<&ring_mla, &ring_mla_shape>("atb::npu_ring_mla");
  table.add<&ring_mla_out>("atb::npu_ring_mla.out");
  table.add<&matmul_add_fp32, &check_matmul_add_fp32>("atb::_npu_matmul_add_fp32");
}

}  // namespace sim
