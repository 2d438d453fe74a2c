// Numbers in int8: what ops that quantise on their way share.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace sim {

// Rounded to the nearest that int8 has.
at::Tensor to_int8(const at::Tensor& values);
// Values in int8, and the scale of each row. A row of zeros has the scale zero, and stays zeros.
std::pair<at::Tensor, at::Tensor> by_row(const at::Tensor& x);

}  // namespace sim
