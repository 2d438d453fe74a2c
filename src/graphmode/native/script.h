// A program as a flat list of dispatcher calls, for calls outside a graph: as its Python code runs them, without
// Python.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace graphmode {

void bind_script(pybind11::module_& m);

}  // namespace graphmode
