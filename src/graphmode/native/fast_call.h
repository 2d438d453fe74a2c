// A model's call without Dynamo's guards: one flat check in their place.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace graphmode {

void bind_fast_call(pybind11::module_& m);

}  // namespace graphmode
