// Activations. Computed in float32, rounded once.
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

// op-plugin docs: npu_gelu.md
Tensor gelu(const Tensor& x, c10::string_view approximate) {
  return at::gelu(x.to(at::kFloat), approximate).to(x.scalar_type());
}

// op-plugin docs: npu_fast_gelu.md
Tensor fast_gelu(const Tensor& x) {
  const Tensor wide = x.to(at::kFloat);
  return (wide * (1.702 * wide).sigmoid()).to(x.scalar_type());
}

// x1 * gelu(x2), and that gelu: GeGluKernelNpuOpApi.cpp. approximate is 1 for tanh.
std::tuple<Tensor, Tensor> geglu(const Tensor& x, int64_t dim, int64_t approximate, bool activate_left) {
  TORCH_CHECK(x.size(dim) % 2 == 0, "npu_geglu: dimension ", dim, " of ", x.sizes(), " can't be halved");
  const auto halves = x.to(at::kFloat).chunk(2, dim);
  const Tensor active = at::gelu(halves[activate_left ? 0 : 1], approximate == 1 ? "tanh" : "none");
  return {(halves[activate_left ? 1 : 0] * active).to(x.scalar_type()), active.to(x.scalar_type())};
}

Tensor silu(const Tensor& x) {
  return at::silu(x.to(at::kFloat)).to(x.scalar_type());
}

Tensor& silu_(Tensor& x) {
  return x.copy_(at::silu(x.to(at::kFloat)));
}

}  // namespace

void activations(Table& table) {
  table.add<&swiglu, &swiglu>("npu::npu_swiglu");
  table.add<&gelu, &gelu>("npu::npu_gelu");
  table.add<&fast_gelu, &fast_gelu>("npu::npu_fast_gelu");
  table.add<&fast_gelu, &fast_gelu>("npu::fast_gelu");
  table.add<&geglu, &geglu>("npu::npu_geglu");
  table.add<&silu, &silu>("npu::npu_silu");
  table.add<&silu_, &silu_>("npu::npu_silu_");
}

}  // namespace sim
