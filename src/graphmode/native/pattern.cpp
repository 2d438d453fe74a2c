#include "pattern.h"

#include <torch/csrc/Device.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstring>

#include "watch.h"

namespace graphmode {

namespace {

// Floats by bits: 0.0 is not -0.0, and a NaN is itself.
bool same_constant(PyObject* a, PyObject* b) {
  if (a == b) {
    return true;
  }
  if (Py_TYPE(a) != Py_TYPE(b)) {
    return false;
  }
  if (PyFloat_CheckExact(a)) {
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return std::memcmp(&x, &y, sizeof x) == 0;
  }
  const int equal = PyObject_RichCompareBool(a, b, Py_EQ);
  if (equal < 0) {
    throw python_error();
  }
  return equal == 1;
}

bool is_constant(PyObject* o) {
  return o == Py_None || PyBool_Check(o) || PyLong_CheckExact(o) || PyFloat_CheckExact(o) || PyUnicode_CheckExact(o) ||
         PyBytes_CheckExact(o) || THPDevice_Check(o);
}

}  // namespace

Pattern::Pattern(PyObject* o) {
  if (THPVariable_Check(o)) {
    kind = Tensor;
  } else if (PyTuple_CheckExact(o) || PyList_CheckExact(o)) {
    kind = PyTuple_CheckExact(o) ? Tuple : List;
    const auto n = PySequence_Fast_GET_SIZE(o);
    for (Py_ssize_t i = 0; i < n; ++i) {
      items.emplace_back(PySequence_Fast_GET_ITEM(o, i));
    }
  } else if (PyDict_CheckExact(o)) {
    kind = Dict;
    object = THPObjectPtr(PySequence_Tuple(o));
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(o, &at, &key, &value)) {
      items.emplace_back(value);
    }
  } else {
    kind = is_constant(o) ? Constant : Same;
    object = THPObjectPtr(Py_NewRef(o));
  }
}

bool Pattern::match(PyObject* o, std::vector<PyObject*>& leaves) const {
  switch (kind) {
    case Tensor:
      leaves.push_back(o);  // the runner compares dtype, sizes and the rest
      return THPVariable_Check(o);
    case Same:
      return o == get(object);
    case Constant:
      return same_constant(o, get(object));
    case Tuple:
    case List: {
      if (!(kind == Tuple ? PyTuple_CheckExact(o) : PyList_CheckExact(o)) ||
          PySequence_Fast_GET_SIZE(o) != static_cast<Py_ssize_t>(items.size())) {
        return false;
      }
      for (size_t i = 0; i < items.size(); ++i) {
        if (!items[i].match(PySequence_Fast_GET_ITEM(o, static_cast<Py_ssize_t>(i)), leaves)) {
          return false;
        }
      }
      return true;
    }
    case Dict: {
      if (!PyDict_CheckExact(o) || PyDict_GET_SIZE(o) != static_cast<Py_ssize_t>(items.size())) {
        return false;
      }
      PyObject *key = nullptr, *value = nullptr;
      Py_ssize_t at = 0;
      size_t i = 0;
      while (PyDict_Next(o, &at, &key, &value)) {
        PyObject* want = PyTuple_GET_ITEM(get(object), static_cast<Py_ssize_t>(i));
        const bool same_key = key == want || (is_constant(key) && same_constant(key, want));
        if (!same_key || !items[i++].match(value, leaves)) {
          return false;
        }
      }
      return true;
    }
  }
  return false;
}

int Pattern::traverse(visitproc visit, void* arg) const {
  Py_VISIT(get(object));
  for (const auto& item : items) {
    if (const int stop = item.traverse(visit, arg)) {
      return stop;
    }
  }
  return 0;
}

TensorForm::TensorForm(PyObject* o) : type(Py_TYPE(o)) {
  const auto& t = THPVariable_Unpack(o);
  keys = t.key_set();
  dtype = t.dtype();
  requires_grad = t.requires_grad();
  if (t.layout() == at::kStrided) {
    sizes = t.sizes().vec();
    strides = t.strides().vec();
    storage_offset = t.storage_offset();
  }
}

bool TensorForm::match(PyObject* o) const {
  if (Py_TYPE(o) != type) {
    return false;
  }
  const auto& t = THPVariable_Unpack(o);
  return t.layout() == at::kStrided && t.key_set() == keys && t.dtype() == dtype && t.sizes() == sizes &&
         t.strides() == strides && t.storage_offset() == storage_offset && t.requires_grad() == requires_grad;
}

}  // namespace graphmode
