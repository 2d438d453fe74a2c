// Writing into caches of keys and values: what ops that fill a cache on their way share.
#pragma once

#include <ATen/core/Tensor.h>

namespace sim {

// Rows of `update` to the slots of a cache that is [blocks, rows of a block, ...]. A slot below zero is no slot.
void write_slots(const at::Tensor& cache, const at::Tensor& update, const at::Tensor& slots);

}  // namespace sim
