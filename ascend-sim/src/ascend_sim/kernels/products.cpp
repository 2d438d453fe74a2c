// Matrix products, permutations and dtypes that torch_npu has under names of its own.
#include <ATen/ATen.h>

#include "reference.h"

namespace sim {
namespace {

using at::Tensor;

// op-plugin docs: npu_linear.md
Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return at::linear(x, weight, bias);
}

// op-plugin docs: npu_bmmV2.md
Tensor bmm_v2(const Tensor& x, const Tensor& y, at::IntArrayRef sizes) {
  TORCH_CHECK(sizes.empty(), "npu_bmmV2 with output_sizes is not emulated: it is for the backward pass");
  return x.matmul(y);
}

// op-plugin docs: npu_transpose.md. Plain order is all there is here.
Tensor transpose(const Tensor& x, at::IntArrayRef order, bool) {
  return x.permute(order);
}

// op-plugin docs: npu_transpose_batchmatmul.md. Each input is put into the order [batch, rows, columns] first; rows are
// before batches in the result, if no order is asked for.
Tensor transpose_batchmatmul(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& scale, at::OptionalIntArrayRef first, at::OptionalIntArrayRef second,
                             at::OptionalIntArrayRef wanted, std::optional<int64_t> factor) {
  const char* op = "npu_transpose_batchmatmul";
  TORCH_CHECK(!bias.has_value() && !scale.has_value() && factor.value_or(1) == 1, op,
              " with a bias, a scale or a batch_split_factor is not emulated");
  TORCH_CHECK(x.dim() == 3 && weight.dim() == 3, op, ": inputs have three dimensions, not ", x.sizes(), " and ",
              weight.sizes());
  const auto ordered = [](const Tensor& t, at::OptionalIntArrayRef order) {
    return order && !order->empty() ? t.permute(*order) : t;
  };
  Tensor y = at::bmm(ordered(x, first).to(at::kFloat), ordered(weight, second).to(at::kFloat)).to(x.scalar_type());
  return (wanted && !wanted->empty() ? y.permute(*wanted) : y.transpose(0, 1)).contiguous();
}

Tensor dtype_cast(const Tensor& x, int64_t dtype, std::optional<int64_t>) {
  TORCH_CHECK(dtype >= 0 && dtype < static_cast<int64_t>(at::ScalarType::NumOptions), "npu_dtype_cast to the dtype ",
              dtype, " is not emulated");
  return x.to(static_cast<at::ScalarType>(dtype));
}

Tensor own_dtype_cast(const Tensor& x, at::ScalarType dtype) {
  return x.to(dtype);
}

Tensor& dtype_cast_(Tensor& x, const Tensor& other) {
  return x.copy_(other);
}

// op-plugin docs: npu_prefetch.md: a weight goes into the device's own cache, which changes no value.
void prefetch(const Tensor&, const OptionalTensor&, int64_t, int64_t) {}

void check_prefetch(const Tensor& weight, const OptionalTensor&, int64_t size, int64_t offset) {
  TORCH_CHECK(size > 0 && offset >= 0 && offset < static_cast<int64_t>(weight.nbytes()), "npu_prefetch: ", size,
              " bytes from ", offset, " of ", weight.nbytes());
}

}  // namespace

void products(Table& table) {
  table.add<&linear, &linear>("npu::npu_linear");
  table.add<&bmm_v2, &bmm_v2>("npu::npu_bmmV2");
  table.add<&transpose, &transpose>("npu::npu_transpose");
  table.add<&transpose_batchmatmul, &transpose_batchmatmul>("npu::npu_transpose_batchmatmul");
  table.add<&dtype_cast, &dtype_cast>("npu::npu_dtype_cast");
  table.add<&own_dtype_cast, &own_dtype_cast>("npu::_npu_dtype_cast");
  table.add<&dtype_cast_, &dtype_cast_>("npu::npu_dtype_cast_");
  table.add<&prefetch, &check_prefetch>("npu::npu_prefetch");
}

}  // namespace sim
