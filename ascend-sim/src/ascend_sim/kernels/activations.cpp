// Gated activations. Computed in float32, rounded once.
#include <ATen/ATen.h>

#include "reference.h"

namespace sim {
namespace {

using at::Tensor;

// op-plugin docs: npu_swiglu.md. The first half is activated.
Tensor swiglu(const Tensor& x, int64_t dim) {
  TORCH_CHECK(x.size(dim) % 2 == 0, "npu_swiglu: dimension ", dim, " of ", x.sizes(), " can't be halved");
  const auto halves = x.to(at::kFloat).chunk(2, dim);
  return at::silu(halves[0]).mul_(halves[1]).to(x.scalar_type());
}

}  // namespace

void activations(Table& table) {
  table.add<&swiglu, &swiglu>("npu::npu_swiglu");
}

}  // namespace sim
