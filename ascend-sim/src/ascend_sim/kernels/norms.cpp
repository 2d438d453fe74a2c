// Root-mean-square norms. Computed in float32, rounded once.
#include "norms.h"

#include <ATen/ATen.h>

#include "reference.h"

namespace sim {

using at::Tensor;

std::tuple<Tensor, Tensor> normalised(const Tensor& x, int64_t dimensions, double epsilon) {
  std::vector<int64_t> over;
  for (int64_t d = 1; d <= dimensions; ++d)
    over.push_back(-d);
  const Tensor wide = x.to(at::kFloat);
  const Tensor rstd = wide.square().mean(over, /*keepdim=*/true).add(epsilon).rsqrt();
  return {wide * rstd, rstd};
}

namespace {

void check_norm(const char* op, const Tensor& x, const Tensor& gamma) {
  TORCH_CHECK(at::isFloatingType(x.scalar_type()) && x.scalar_type() != at::kDouble, op,
              " takes float32, float16 or bfloat16, not ", x.scalar_type());
  TORCH_CHECK(gamma.dim() <= x.dim() && gamma.sizes().equals(x.sizes().slice(x.dim() - gamma.dim())), op,
              ": gamma's shape ", gamma.sizes(), " is not the end of x's, ", x.sizes());
}

// op-plugin docs: npu_rms_norm.md
std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& gamma, double epsilon) {
  check_norm("npu_rms_norm", x, gamma);
  const auto [y, rstd] = normalised(x, gamma.dim(), epsilon);
  return {(y * gamma.to(at::kFloat)).to(x.scalar_type()), rstd};
}

// As above, with gamma counted from one: op-plugin's GemmaRmsNormKernelOpApi.cpp
std::tuple<Tensor, Tensor> gemma_rms_norm(const Tensor& x, const Tensor& gamma, double epsilon) {
  check_norm("npu_gemma_rms_norm", x, gamma);
  const auto [y, rstd] = normalised(x, gamma.dim(), epsilon);
  return {(y * (gamma.to(at::kFloat) + 1)).to(x.scalar_type()), rstd};
}

// op-plugin docs: npu_add_rms_norm.md. The sum is rounded before it is normalised: it is a result.
std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x1, const Tensor& x2, const Tensor& gamma,
                                                double epsilon) {
  TORCH_CHECK(x1.sizes().equals(x2.sizes()) && x1.scalar_type() == x2.scalar_type(), "npu_add_rms_norm: x1 is ",
              x1.toString(), x1.sizes(), " and x2 is ", x2.toString(), x2.sizes());
  check_norm("npu_add_rms_norm", x1, gamma);
  const Tensor x = x1 + x2;
  const auto [y, rstd] = normalised(x, gamma.dim(), epsilon);
  return {(y * gamma.to(at::kFloat)).to(x.scalar_type()), rstd, x};
}

}  // namespace

void norms(Table& table) {
  table.add<&rms_norm, &rms_norm>("npu::npu_rms_norm");
  table.add<&gemma_rms_norm, &gemma_rms_norm>("npu::npu_gemma_rms_norm");
  table.add<&add_rms_norm, &add_rms_norm>("npu::npu_add_rms_norm");
}

}  // namespace sim
