#include "attend.h"

namespace sim {

using at::Tensor;

Attended attend(const Tensor& query, const Tensor& key, const Tensor& value, const Attend& how) {
  const int64_t heads = query.size(0), queries = query.size(1), key_heads = key.size(0), keys = key.size(1);
  const double lowest = -std::numeric_limits<double>::infinity();
  if (keys == 0 || queries == 0) {
    const Tensor none = at::zeros({heads, queries}, at::kFloat);
    return {at::zeros({heads, queries, value.size(2)}, at::kFloat), at::full_like(none, -lowest), none, none};
  }
  // Heads that share a key are rows of one product.
  const Tensor rows = query.to(at::kFloat).reshape({key_heads, heads / key_heads * queries, query.size(2)});
  Tensor scores = at::bmm(rows, key.to(at::kFloat).transpose(1, 2)).mul_(how.scale).view({heads, queries, keys});
  if (how.bias.defined())
    scores.add_(how.bias.to(at::kFloat));
  if (how.band) {
    const Tensor ahead = at::arange(keys) - at::arange(queries).unsqueeze(1) - how.band->offset;
    scores.masked_fill_((ahead > how.band->after).logical_or_(ahead < -how.band->before), lowest);
  }
  if (how.mask.defined())
    scores.masked_fill_(how.mask.to(at::kBool), lowest);
  Tensor highest = scores.amax(-1, true);
  if (how.sink.defined())
    highest = highest.maximum(how.sink.to(at::kFloat).view({heads, 1, 1}));
  const Tensor blind = highest == lowest;
  highest.masked_fill_(blind, 0);
  scores.sub_(highest).exp_();
  Tensor sum = scores.sum(-1, true);
  if (how.sink.defined())
    sum.add_((how.sink.to(at::kFloat).view({heads, 1, 1}) - highest).exp_());
  Tensor out = at::bmm(scores.view({key_heads, heads / key_heads * queries, keys}), value.to(at::kFloat))
                   .view({heads, queries, value.size(2)});
  out.div_(sum).masked_fill_(blind, 0);
  const Tensor lse = (highest + sum.log()).masked_fill_(blind, -lowest);
  return {out, lse.squeeze(-1), highest.squeeze(-1), sum.masked_fill(blind, 0).squeeze(-1)};
}

Tensor by_heads(const Tensor& tensor, const std::string& layout, int64_t heads) {
  if (layout == "BSH")
    return tensor.unflatten(-1, {heads, -1}).transpose(1, 2);
  if (layout == "SBH")
    return tensor.transpose(0, 1).unflatten(-1, {heads, -1}).transpose(1, 2);
  if (layout == "BSND")
    return tensor.transpose(1, 2);
  if (layout == "BNSD")
    return tensor;
  if (layout == "NBSD")
    return tensor.transpose(0, 1);
  if (layout == "TND")
    return tensor.transpose(0, 1).unsqueeze(0);
  TORCH_CHECK(layout == "NTD" || layout == "NSD", "attention has no layout ", layout);
  return tensor.unsqueeze(0);
}

Tensor cache_by_heads(const Tensor& cache, int64_t heads) {
  if (cache.dim() == 3)
    return cache.unflatten(-1, {heads, -1}).transpose(1, 2);
  if (cache.dim() == 4)
    return cache;
  return cache.transpose(2, 3).flatten(3);
}

Tensor paged(const Tensor& cache, const Tensor& blocks, int64_t rows) {
  const int64_t size = cache.size(2);
  const Tensor named = blocks.narrow(0, 0, (rows + size - 1) / size).to(at::kLong);
  return cache.index_select(0, named).transpose(0, 1).flatten(1, 2).narrow(1, 0, rows);
}

}  // namespace sim
