// Filters of logits before sampling.
#include <ATen/ATen.h>

#include "reference.h"

namespace sim {
namespace {

using at::Tensor;

// op-plugin docs: npu_top_k_top_p.md. What is filtered becomes -inf; values that equal the k-th stay.
Tensor top_k_top_p(const Tensor& logits, const std::optional<Tensor>& p, const std::optional<Tensor>& k) {
  const auto [sorted, order] = logits.to(at::kFloat).sort(/*stable=*/true, -1, /*descending=*/false);
  const double lowest = -std::numeric_limits<double>::infinity();
  Tensor kept = sorted;
  if (k.has_value() && k->defined()) {
    const Tensor kth = (logits.size(-1) - k->to(at::kLong)).clamp(0, logits.size(-1) - 1).unsqueeze(-1);
    kept = kept.masked_fill(kept < kept.gather(-1, kth), lowest);
  }
  if (p.has_value() && p->defined()) {
    Tensor filtered = kept.softmax(-1).cumsum(-1) <= 1 - p->to(at::kFloat).unsqueeze(-1);
    filtered.select(-1, -1).fill_(false);
    kept = kept.masked_fill(filtered, lowest);
  }
  return at::empty_like(kept).scatter_(-1, order, kept).to(logits.scalar_type());
}

Tensor top_k_top_p_shape(const Tensor& logits, const std::optional<Tensor>& p, const std::optional<Tensor>& k) {
  TORCH_CHECK(logits.dim() == 2, "npu_top_k_top_p: logits are [batch, vocabulary], not ", logits.sizes());
  for (const auto* limit : {&p, &k}) {
    TORCH_CHECK(
        !limit->has_value() || !(*limit)->defined() || ((*limit)->dim() == 1 && (*limit)->size(0) == logits.size(0)),
        "npu_top_k_top_p: one limit for each row of ", logits.sizes(), ", not ", (*limit)->sizes());
  }
  return at::empty(logits.sizes(), logits.options());
}

}  // namespace

void sampling(Table& table) {
  table.add<&top_k_top_p, &top_k_top_p_shape>("npu::npu_top_k_top_p");
}

}  // namespace sim
