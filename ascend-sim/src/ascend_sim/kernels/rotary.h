// What ops with a rotary embedding inside share with the embeddings.
#pragma once

#include <ATen/core/Tensor.h>

namespace sim {

// x turned by the angles, in float32: its halves by each other, or its pairs.
at::Tensor turned(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool pairs);
// Pairs along the last dimension as halves.
at::Tensor taken_apart(const at::Tensor& x);

}  // namespace sim
