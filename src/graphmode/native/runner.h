// The Python-callable hot path of a compiled region.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "executable.h"

namespace graphmode {

// What a signature holds besides the arguments: thread count, inference mode and the flags that choose kernels.
uint64_t mode_bits();

void bind_runner(pybind11::module_& m);

}  // namespace graphmode
