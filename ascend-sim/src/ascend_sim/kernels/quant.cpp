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

// The group of each row; groups end where the indices say.
Tensor group_of_rows(const Tensor& ends, int64_t rows) {
  return at::searchsorted(ends.to(at::kLong).contiguous(), at::arange(rows, ends.options().dtype(at::kLong)), false,
                          /*right=*/true);
}

// Each row times its group's own factors.
Tensor smoothed(const Tensor& x, const OptionalTensor& factors, const OptionalTensor& ends) {
  if (!given(factors))
    return wide(x);
  if (!given(ends))
    return wide(x) * wide(*factors);
  const Tensor group = group_of_rows(*ends, x.numel() / x.size(-1));
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

// What each row's group has of factors by group: [groups], or [groups, columns]. Rows behind the last group have the
// last one's: nobody may read them.
Tensor by_group(const Tensor& factors, const Tensor& group) {
  const Tensor rows = wide(factors).index_select(0, group.clamp_max(factors.size(0) - 1));
  return rows.dim() == 1 ? rows.unsqueeze(-1) : rows;
}

// Values of [rows, columns] in int8: by a scale and an offset for each column, or by the scale that each row then has.
std::pair<Tensor, Tensor> quantised(const Tensor& values, bool dynamic) {
  // The fixed scales are the caller's: no result is made of them.
  return dynamic ? by_row(values) : std::pair(to_int8(values), at::empty({0}, at::kFloat));
}

// op-plugin docs: npu_swiglu_quant.md, and for fixed scales CANN's swi_glu_quant README: they multiply.
std::tuple<Tensor, Tensor> swiglu_quant(const Tensor& x, const OptionalTensor& scales, const OptionalTensor& offsets,
                                        const OptionalTensor& groups, bool left, int64_t mode, int64_t list_type,
                                        std::optional<at::ScalarType>) {
  const auto halves = wide(x).reshape({-1, x.size(-1)}).chunk(2, -1);
  Tensor y = at::silu(halves[left ? 0 : 1]) * halves[left ? 1 : 0];
  Tensor group = at::zeros({y.size(0)}, at::kLong);
  if (given(groups))
    group = group_of_rows(list_type == 1 ? groups->to(at::kLong).cumsum(0) : *groups, y.size(0));
  if (given(scales))
    y = y * by_group(*scales, group);
  if (given(offsets) && mode == 0)
    y = y + by_group(*offsets, group);
  const auto [values, scale] = quantised(y, mode == 1);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return {values.view(sizes), mode == 1 ? scale.view(x.sizes().slice(0, x.dim() - 1)) : scale};
}

std::tuple<Tensor, Tensor> swiglu_quant_shapes(const Tensor& x, const OptionalTensor& scales,
                                               const OptionalTensor& offsets, const OptionalTensor&, bool, int64_t mode,
                                               int64_t list_type, std::optional<at::ScalarType> dtype) {
  const char* op = "npu_swiglu_quant";
  TORCH_CHECK(dtype.value_or(at::kChar) == at::kChar, op, " to ", *dtype, " is not emulated: int8 is");
  TORCH_CHECK((mode == 0 || mode == 1) && (list_type == 0 || list_type == 1), op, " has no quant_mode ", mode,
              " with group_list_type ", list_type);
  TORCH_CHECK(x.dim() > 1 && x.size(-1) % 2 == 0, op, ": the last dimension of ", x.sizes(), " can't be halved");
  TORCH_CHECK(mode == 1 || (given(scales) && given(offsets) && scales->sizes().equals(offsets->sizes())), op,
              ": quant_mode 0 needs smooth_scales and offsets of one shape");
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return {at::empty(sizes, x.options().dtype(at::kChar)),
          at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
}

// The activation that op-plugin's npu_dequant_swiglu_quant.md calls a variant: bounded, and with a slope and a bias.
Tensor bounded_swiglu(const Tensor& gate, const Tensor& linear, double limit, double alpha, double bias) {
  const Tensor glu = gate.clamp_max(limit);
  return glu * (glu * alpha).sigmoid() * (linear.clamp(-limit, limit) + bias);
}

// op-plugin docs: npu_dequant_swiglu_quant.md; what its formulas leave open (where the bias comes in, that fixed scales
// divide): the definition in op-plugin's test_npu_dequant_swiglu_quant.py. Groups are counted.
std::tuple<Tensor, Tensor> dequant_swiglu_quant(const Tensor& x, const OptionalTensor& weight_scale,
                                                const OptionalTensor& token_scale, const OptionalTensor& bias,
                                                const OptionalTensor& scale, const OptionalTensor& offset,
                                                const OptionalTensor& groups, bool left, int64_t mode,
                                                std::optional<int64_t>, std::optional<int64_t>, std::optional<int64_t>,
                                                int64_t swiglu_mode, double limit, double alpha, double glu_bias) {
  const Tensor flat = x.reshape({-1, x.size(-1)});
  const Tensor group = given(groups) ? group_of_rows(groups->to(at::kLong).cumsum(0), flat.size(0))
                                     : at::zeros({flat.size(0)}, at::kLong);
  const auto of_columns = [&](const Tensor& t) { return by_group(t.reshape({-1, x.size(-1)}), group); };
  Tensor y = wide(given(bias) && !at::isFloatingType(bias->scalar_type()) ? flat + *bias : flat);
  if (given(weight_scale))
    y = y * of_columns(*weight_scale);
  if (given(token_scale))
    y = y * wide(*token_scale).reshape({-1, 1});
  if (given(bias) && at::isFloatingType(bias->scalar_type()))
    y = y + wide(*bias);
  if (swiglu_mode == 1) {
    const Tensor pairs = y.unflatten(-1, {-1, 2});
    y = bounded_swiglu(pairs.select(-1, 0), pairs.select(-1, 1), limit, alpha, glu_bias);
  } else {
    const auto halves = y.chunk(2, -1);
    const Tensor gate = halves[left ? 0 : 1], linear = halves[left ? 1 : 0];
    y = swiglu_mode == 2 ? bounded_swiglu(gate, linear, limit, alpha, glu_bias) : at::silu(gate) * linear;
  }
  if (given(scale))
    y = mode == 1 ? y * by_group(*scale, group) : y / by_group(*scale, group);
  if (given(offset) && mode == 0)
    y = y + by_group(*offset, group);
  const auto [values, found] = quantised(y, mode == 1);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return {values.view(sizes), mode == 1 ? found.view(x.sizes().slice(0, x.dim() - 1)) : found};
}

std::tuple<Tensor, Tensor> dequant_swiglu_quant_shapes(const Tensor& x, const OptionalTensor& weight_scale,
                                                       const OptionalTensor& token_scale, const OptionalTensor& bias,
                                                       const OptionalTensor&, const OptionalTensor&,
                                                       const OptionalTensor& groups, bool, int64_t mode,
                                                       std::optional<int64_t> dtype, std::optional<int64_t> rounding,
                                                       std::optional<int64_t> dimension, int64_t swiglu_mode, double,
                                                       double, double) {
  const char* op = "npu_dequant_swiglu_quant";
  check_int8(op, dtype);
  TORCH_CHECK(rounding.value_or(0) == 0, op, " with round_mode ", rounding.value_or(0), " is not emulated: 0 is");
  TORCH_CHECK(dimension.value_or(-1) == -1 || *dimension == x.dim() - 1, op, " with activate_dim ",
              dimension.value_or(-1), " is not emulated: the last one is");
  TORCH_CHECK((mode == 0 || mode == 1) && swiglu_mode >= 0 && swiglu_mode <= 2, op, " has no quant_mode ", mode,
              " with swiglu_mode ", swiglu_mode);
  TORCH_CHECK(x.dim() > 1 && x.size(-1) % 2 == 0, op, ": the last dimension of ", x.sizes(), " can't be halved");
  TORCH_CHECK(x.scalar_type() == at::kInt || (!given(weight_scale) && !given(token_scale) && !given(bias)), op, " of ",
              x.scalar_type(), " with weight_scale, activation_scale or bias is not emulated: int32 has them");
  TORCH_CHECK(!given(groups) || !given(bias), op, ": no bias with a group_index");
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  return {at::empty(sizes, x.options().dtype(at::kChar)),
          at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat))};
}

}  // namespace

void quant(Table& table) {
  table.add<&dynamic_quant, &dynamic_quant>("npu::npu_dynamic_quant");
  table.add<&dynamic_quant_asymmetric, &dynamic_quant_asymmetric>("npu::npu_dynamic_quant_asymmetric");
  table.add<&add_rms_norm_quant>("npu::npu_add_rms_norm_quant");
  table.add<&add_rms_norm_dynamic_quant, &add_rms_norm_dynamic_quant>("npu::npu_add_rms_norm_dynamic_quant");
  table.add<&quantize, &quantize>("npu::npu_quantize");
  table.add<&swiglu_quant, &swiglu_quant_shapes>("npu::npu_swiglu_quant");
  table.add<&dequant_swiglu_quant, &dequant_swiglu_quant_shapes>("npu::npu_dequant_swiglu_quant");
  table.add<&quant_matmul, &quant_matmul>("npu::npu_quant_matmul");
  table.add<&weight_quant_batchmatmul, &weight_quant_batchmatmul>("npu::npu_weight_quant_batchmatmul");
}

}  // namespace sim
