// Quantisation, by token and by fixed scales, alone and behind norms, and matrix products of quantised numbers.
#include "quant.h"

#include <ATen/ATen.h>

#include "norms.h"
#include "reference.h"

namespace sim {

using at::Tensor;

Tensor to_int8(const Tensor& values) {
  return values.nan_to_num(0).round_().clamp_(-128, 127).to(at::kChar);
}

std::pair<Tensor, Tensor> by_row(const Tensor& x) {
  const Tensor scale = x.abs().amax(-1, true) / 127;
  return {to_int8(x / scale), scale.squeeze(-1)};
}

namespace {

Tensor wide(const Tensor& tensor) {
  return tensor.to(at::kFloat);
}

void check_int8(const char* op, std::optional<int64_t> dtype) {
  TORCH_CHECK(dtype.value_or(1) == static_cast<int64_t>(at::kChar), op, " to another dtype than int8 is not emulated");
}

// Each row times its group's own factors; groups end where the indices say.
Tensor smoothed(const Tensor& x, const OptionalTensor& factors, const OptionalTensor& ends) {
  if (!given(factors))
    return wide(x);
  if (!given(ends))
    return wide(x) * wide(*factors);
  const Tensor rows = at::arange(x.numel() / x.size(-1)), until = ends->to(at::kLong);
  const Tensor group = at::searchsorted(until.contiguous(), rows, false, /*right=*/true);
  return wide(x) * wide(*factors).index_select(0, group).view_as(x);
}

// op-plugin docs: npu_dynamic_quant.md
std::tuple<Tensor, Tensor> dynamic_quant(const Tensor& x, const OptionalTensor& smooth, const OptionalTensor& groups,
                                         std::optional<int64_t> dtype, c10::string_view mode, double) {
  check_int8("npu_dynamic_quant", dtype);
  TORCH_CHECK(mode == "pertoken" || mode == "pertensor", "npu_dynamic_quant with quant_mode ", mode,
              " is not emulated: pertoken and pertensor are");
  const Tensor values = smoothed(x, smooth, groups);
  if (mode == "pertoken")
    return by_row(values);
  const auto [flat, scale] = by_row(values.reshape({1, -1}));
  return {flat.view_as(x), scale};
}

// op-plugin docs: npu_dynamic_quant_asymmetric.md
std::tuple<Tensor, Tensor, Tensor> dynamic_quant_asymmetric(const Tensor& x, const OptionalTensor& smooth,
                                                            const OptionalTensor& groups, std::optional<int64_t> dtype,
                                                            c10::string_view mode, double) {
  check_int8("npu_dynamic_quant_asymmetric", dtype);
  TORCH_CHECK(mode == "pertoken", "npu_dynamic_quant_asymmetric with quant_mode ", mode,
              " is not emulated: pertoken is");
  const Tensor values = smoothed(x, smooth, groups);
  const Tensor highest = values.amax(-1, true), scale = (highest - values.amin(-1, true)) / 255;
  const Tensor offset = 127 - highest / scale;
  return {to_int8(values / scale + offset), scale.squeeze(-1), offset.squeeze(-1)};
}

Tensor sum_normalised(const Tensor& x, const Tensor& gamma, const OptionalTensor& beta, double epsilon) {
  const Tensor y = std::get<0>(normalised(x, gamma.dim(), epsilon)) * wide(gamma);
  return given(beta) ? y + wide(*beta) : y;
}

// op-plugin docs: npu_add_rms_norm_quant.md
std::tuple<Tensor, Tensor, Tensor> add_rms_norm_quant(const Tensor& x1, const Tensor& x2, const Tensor& gamma,
                                                      const Tensor& scales1, const OptionalTensor& zeros1,
                                                      const OptionalTensor& beta, const OptionalTensor& scales2,
                                                      const OptionalTensor& zeros2, int64_t, double epsilon,
                                                      bool divides, std::optional<int64_t> dtype) {
  check_int8("npu_add_rms_norm_quant", dtype);
  const Tensor x = x1 + x2, y = sum_normalised(x, gamma, beta, epsilon);
  const auto quantised = [&](const Tensor& scale, const OptionalTensor& zero) {
    const Tensor scaled = divides ? y / wide(scale) : y * wide(scale);
    return to_int8(given(zero) ? scaled + wide(*zero) : scaled);
  };
  return {quantised(scales1, zeros1), given(scales2) ? quantised(*scales2, zeros2) : at::empty({0}, at::kChar), x};
}

// op-plugin docs: npu_add_rms_norm_dynamic_quant.md
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_rms_norm_dynamic_quant(
    const Tensor& x1, const Tensor& x2, const Tensor& gamma, const OptionalTensor& smooth1,
    const OptionalTensor& smooth2, const OptionalTensor& beta, double epsilon, std::optional<std::array<bool, 2>> mask,
    std::optional<int64_t> dtype) {
  check_int8("npu_add_rms_norm_dynamic_quant", dtype);
  const Tensor x = x1 + x2, y = sum_normalised(x, gamma, beta, epsilon);
  const bool first = !mask || (*mask)[0], second = mask ? (*mask)[1] : given(smooth1) && given(smooth2);
  const auto quantised = [&](bool wanted, const OptionalTensor& smooth) {
    return wanted ? by_row(smoothed(y, smooth, std::nullopt))
                  : std::pair(at::empty({0}, at::kChar), at::empty({0}, at::kFloat));
  };
  const auto [y1, scale1] = quantised(first, smooth1);
  const auto [y2, scale2] = quantised(second, smooth2);
  return {y1, y2, x, scale1, scale2};
}

// Numbers of torch_npu for dtypes are torch's, but for its own.
at::ScalarType dtype_of(const char* op, int64_t number) {
  TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(at::ScalarType::NumOptions), op, " to the dtype ", number,
              " is not emulated");
  return static_cast<at::ScalarType>(number);
}

// op-plugin docs: npu_quantize.md
Tensor quantize(const Tensor& x, const Tensor& scales, const OptionalTensor& zeros, int64_t dtype, int64_t axis,
                bool divides) {
  const auto to = dtype_of("npu_quantize", dtype);
  const auto along = [&](const Tensor& t) {
    if (t.dim() != 1 || t.numel() == 1)
      return wide(t);
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim()), 1);
    sizes[static_cast<size_t>(divides ? (axis < 0 ? axis + x.dim() : axis) : x.dim() - (axis == -2 ? 2 : 1))] = -1;
    return wide(t).view(sizes);
  };
  Tensor y = divides ? wide(x) / along(scales) : wide(x) * along(scales);
  if (given(zeros))
    y = y + along(*zeros);
  if (to == at::kQInt8 || to == at::kChar)
    return to_int8(y);
  if (to == at::kQUInt8 || to == at::kByte)
    return y.round_().clamp_(0, 255).to(at::kByte);
  TORCH_CHECK(to == at::kQInt32 || to == at::kInt, "npu_quantize to ", to, " is not emulated");
  return y.round_().to(at::kInt);
}

// op-plugin docs: npu_quant_matmul.md
Tensor quant_matmul(const Tensor& x1, const Tensor& x2, const Tensor& scale, const OptionalTensor& offset,
                    const OptionalTensor& token_scale, const OptionalTensor& bias, std::optional<int64_t> dtype,
                    std::optional<int64_t>, std::optional<int64_t>, std::optional<int64_t>, std::optional<int64_t>,
                    at::OptionalIntArrayRef groups, const OptionalTensor& y_scale) {
  const char* op = "npu_quant_matmul";
  TORCH_CHECK(x1.scalar_type() == at::kChar && x2.scalar_type() == at::kChar, op, " of ", x1.scalar_type(), " and ",
              x2.scalar_type(), " is not emulated: int8 is");
  TORCH_CHECK(at::isFloatingType(scale.scalar_type()) && scale.dim() == 1, op, " with a scale of ", scale.toString(),
              scale.sizes(), " is not emulated: one number for each column is");
  TORCH_CHECK(!given(y_scale) && (!groups || groups->empty()), op, " with y_scale or group_sizes is not emulated");
  const auto to = dtype_of(op, dtype.value_or(static_cast<int64_t>(at::kChar)));
  // Sums of products of int8 are exact in float64.
  Tensor y = x1.to(at::kDouble).matmul(x2.to(at::kDouble));
  const bool whole = given(bias) && !at::isFloatingType(bias->scalar_type());
  if (whole)
    y = y + bias->to(at::kDouble);
  if (to == at::kInt)
    return y.to(at::kInt);
  y = wide(y) * wide(scale);
  if (given(token_scale))
    y = y * wide(*token_scale).unsqueeze(-1);
  if (given(offset))
    y = y + wide(*offset);
  if (given(bias) && !whole)
    y = y + wide(*bias);
  return to == at::kChar ? to_int8(y) : y.to(to);
}

// op-plugin docs: npu_weight_quant_batchmatmul.md
Tensor weight_quant_batchmatmul(const Tensor& x, const Tensor& weight, const Tensor& scale,
                                const OptionalTensor& offset, const OptionalTensor& quant_scale, const OptionalTensor&,
                                const OptionalTensor& bias, int64_t group, int64_t, std::optional<int64_t>) {
  const char* op = "npu_weight_quant_batchmatmul";
  TORCH_CHECK(weight.scalar_type() == at::kChar && at::isFloatingType(scale.scalar_type()) && !given(quant_scale), op,
              " with weights of ", weight.scalar_type(), ", scales of ", scale.scalar_type(),
              given(quant_scale) ? " and a quant_scale" : "", " is not emulated: int8 weights by floating scales are");
  // Rows share a scale: all of them, or those of a group.
  const auto rows = [&](const Tensor& t) {
    if (t.dim() < 2 || t.size(0) == 1)
      return wide(t);
    return wide(t).repeat_interleave(group, 0).narrow(0, 0, weight.size(0));
  };
  Tensor real = wide(weight);
  if (given(offset))
    real = real + rows(*offset);
  Tensor y = wide(x).matmul(real * rows(scale));
  if (given(bias))
    y = y + wide(*bias);
  return y.to(x.scalar_type());
}

}  // namespace

void quant(Table& table) {
  table.add<&dynamic_quant, &dynamic_quant>("npu::npu_dynamic_quant");
  table.add<&dynamic_quant_asymmetric, &dynamic_quant_asymmetric>("npu::npu_dynamic_quant_asymmetric");
  table.add<&add_rms_norm_quant>("npu::npu_add_rms_norm_quant");
  table.add<&add_rms_norm_dynamic_quant, &add_rms_norm_dynamic_quant>("npu::npu_add_rms_norm_dynamic_quant");
  table.add<&quantize, &quantize>("npu::npu_quantize");
  table.add<&quant_matmul, &quant_matmul>("npu::npu_quant_matmul");
  table.add<&weight_quant_batchmatmul, &weight_quant_batchmatmul>("npu::npu_weight_quant_batchmatmul");
}

}  // namespace sim
