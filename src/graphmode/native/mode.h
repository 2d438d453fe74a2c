// What a graph depends on besides its arguments: the state of the thread and of torch.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstdint>

namespace graphmode {

struct Mode {
  // Dispatch keys included and excluded in this thread (autocast, inference mode, transforms, Python modes); flags
  // that choose kernels; thread count, default dtype, rounding and precisions.
  std::array<uint64_t, 4> words{};

  bool operator==(const Mode&) const = default;
};

Mode current_mode();

// What code traced by Dynamo depends on besides: gradients, autocast, and flags of other devices that Dynamo guards.
uint64_t traced_mode();

// Whether something looks at every torch function, so that a call must not be cut short.
bool is_observed();

void bind_mode(pybind11::module_& m);

}  // namespace graphmode
