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

// The same of what dicts hold under given names by now. Between two steps of a large model none of it stays in the
// processor's cache, and one look follows the other through five addresses: so they are fetched ahead, from where they
// were the last time. Nothing is read through what is remembered, and the pairs stay Python's.
class HeldPlaces {
 public:
  py::bytes now(const py::list& held) {
    fetch_ahead(held);
    std::string found;
    found.reserve(held.size() * 7 * sizeof(int64_t));  // of matrices
    at_.clear();
    for (const auto& pair : held) {
      PyObject* value = PyDict_GetItemWithError(owner(pair.ptr()), PyTuple_GET_ITEM(pair.ptr(), 1));
      if (value == nullptr && PyErr_Occurred() != nullptr) {
        throw py::error_already_set();
      }
      put(found, value);
      if (value != nullptr && THPVariable_Check(value)) {
        const auto& t = THPVariable_Unpack(value);
        at_.push_back({value, t.unsafeGetTensorImpl(), t.has_storage() ? t.storage().unsafeGetStorageImpl() : nullptr});
      }
    }
    return found;
  }

 private:
  struct At {
    const void *object, *tensor, *storage;
  };

  static PyObject* owner(PyObject* pair) {
    TORCH_CHECK_TYPE(PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 && PyDict_Check(PyTuple_GET_ITEM(pair, 0)),
                     "pairs of a dict and a name");
    return PyTuple_GET_ITEM(pair, 0);
  }

  void fetch_ahead(const py::list& held) const {
    for (const auto& pair : held) {
      __builtin_prefetch(pair.ptr());
    }
    for (const auto& at : at_) {
      __builtin_prefetch(at.object);
      for (size_t line = 0; line < sizeof(c10::TensorImpl); line += 64) {
        __builtin_prefetch(static_cast<const char*>(at.tensor) + line);
      }
      __builtin_prefetch(at.storage);
    }
    for (const auto& pair : held) {
      __builtin_prefetch(owner(pair.ptr()));
    }
    for (const auto& pair : held) {
      __builtin_prefetch(reinterpret_cast<PyDictObject*>(owner(pair.ptr()))->ma_keys);
    }
  }

  std::vector<At> at_;
};

}  // namespace

void bind_places(py::module_& m) {
  m.def("places", &places, "Equal bytes, equal places.");
  py::class_<HeldPlaces>(m, "HeldPlaces").def(py::init<>()).def("now", &HeldPlaces::now);
}

}  // namespace graphmode
