// What ops with a norm inside share with the norms.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace sim {

// x / rms(x) over the last `dimensions`, in float32, and 1 / rms(x).
std::tuple<at::Tensor, at::Tensor> normalised(const at::Tensor& x, int64_t dimensions, double epsilon);

}  // namespace sim
