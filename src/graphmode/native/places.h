// Where and what tensors are, in bytes that are compared: what must not change between the replays of a static graph.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace graphmode {

void bind_places(pybind11::module_& m);

}  // namespace graphmode
