// The Python-callable hot path of a compiled region.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "executable.h"
#include "mode.h"

namespace graphmode {

bool is_runner(PyObject* object);

// The replay's results as a tuple, or null (and no error set) when no graph fits these arguments. Throws what a replay
// raises.
PyObject* runner_try(PyObject* runner, PyObject* const* args, size_t n, const Mode& mode);

void bind_runner(pybind11::module_& m);

}  // namespace graphmode
