// Numbers drawn on a device come from torch_npu's generator of it: its seed, and an offset that each draw moves on. In
// a graph both are read from device memory at each execution, where torch_npu puts them before it.
#pragma once

#include <ATen/core/function_schema.h>

#include <memory>

#include "task.h"

namespace sim {

class Draw {
 public:
  virtual ~Draw() = default;
  virtual void append_to(std::vector<Place>& used) const = 0;
  virtual void give(torch::jit::Stack& stack) const = 0;  // a generator of the host in the place of the device's
};

// Null for an op that draws nothing.
std::shared_ptr<Draw> generator_of(const c10::FunctionSchema& schema, const std::vector<c10::IValue>& arguments,
                                   int device);

}  // namespace sim
