#include "places.h"

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <string>
#include <vector>

#include "mode.h"

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

// The places of what dicts hold under given names by now. Between two steps of a large model none of it stays in the
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

template <class T>
void put_bits(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put_text(std::string& to, const char* text, Py_ssize_t length) {
  put_bits(to, length);
  to.append(text, static_cast<size_t>(length));
}

// A tensor's place, or a plain value by its bits, each after a letter for its kind; false for anything else.
bool put_argument(std::string& to, PyObject* value) {
  if (THPVariable_CheckExact(value)) {
    to += 't';
    put(to, value);
  } else if (value == Py_None) {
    to += 'n';
  } else if (PyBool_Check(value)) {
    to += value == Py_True ? 'y' : 'f';
  } else if (PyLong_CheckExact(value)) {
    const long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    to += 'i';
    put_bits(to, number);
  } else if (PyFloat_CheckExact(value)) {
    to += 'd';
    put_bits(to, PyFloat_AS_DOUBLE(value));
  } else if (PyUnicode_CheckExact(value)) {
    Py_ssize_t length = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &length);
    if (text == nullptr) {
      PyErr_Clear();
      return false;
    }
    to += 's';
    put_text(to, text, length);
  } else {
    return false;
  }
  return true;
}

// What a call depends on besides weights; None where an argument is neither a tensor nor a plain value.
py::object spot(const py::tuple& args, const py::dict& kwargs) {
  std::string found;
  for (const uint64_t word : current_mode().words) {
    put_bits(found, word);
  }
  for (const auto& value : args) {
    if (!put_argument(found, value.ptr())) {
      return py::none();
    }
  }
  found += '*';
  for (const auto& [name, value] : kwargs) {
    if (!put_argument(found, name.ptr()) || !put_argument(found, value.ptr())) {
      return py::none();
    }
  }
  return py::bytes(found);
}

}  // namespace

void bind_places(py::module_& m) {
  m.def("spot", &spot, "Equal bytes, equal calls, but for weights.");
  py::class_<HeldPlaces>(m, "HeldPlaces").def(py::init<>()).def("now", &HeldPlaces::now);
}

}  // namespace graphmode
