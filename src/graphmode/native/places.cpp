#include "places.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <string>
#include <vector>

namespace graphmode {

namespace py = pybind11;

namespace {

// Address, dtype, sizes and strides; -1 for what is no tensor.
void put(std::string& to, PyObject* value) {
  const auto number = [&](int64_t n) { to.append(reinterpret_cast<const char*>(&n), sizeof(n)); };
  if (value == nullptr || !THPVariable_Check(value)) {
    number(-1);
    return;
  }
  const auto& t = THPVariable_Unpack(value);
  const bool strided = t.layout() == at::kStrided;
  number(t.dim());
  number(t.has_storage() && strided ? reinterpret_cast<int64_t>(t.const_data_ptr()) : 0);
  number(static_cast<int64_t>(t.scalar_type()));
  std::for_each(t.sizes().begin(), t.sizes().end(), number);
  if (strided) {
    std::for_each(t.strides().begin(), t.strides().end(), number);
  }
}

py::bytes places(const std::vector<py::object>& tensors) {
  std::string found;
  for (const auto& t : tensors) {
    put(found, t.ptr());
  }
  return found;
}

// The same of what dicts hold under given names by now. The pairs stay Python's, which sees what they keep alive.
py::bytes held_places(const py::list& held) {
  std::string found;
  found.reserve(held.size() * 7 * sizeof(int64_t));  // of matrices
  for (const auto& pair : held) {
    TORCH_CHECK_TYPE(PyTuple_CheckExact(pair.ptr()) && PyTuple_GET_SIZE(pair.ptr()) == 2, "pairs of a dict and a name");
    PyObject* owner = PyTuple_GET_ITEM(pair.ptr(), 0);
    TORCH_CHECK_TYPE(PyDict_Check(owner), "pairs of a dict and a name");
    PyObject* value = PyDict_GetItemWithError(owner, PyTuple_GET_ITEM(pair.ptr(), 1));
    if (value == nullptr && PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
    put(found, value);
  }
  return found;
}

}  // namespace

void bind_places(py::module_& m) {
  m.def("places", &places, "Equal bytes, equal places.");
  m.def("held_places", &held_places);
}

}  // namespace graphmode
