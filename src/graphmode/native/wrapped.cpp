#include "wrapped.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

namespace graphmode {

namespace {

PyObject* model_of(PyObject* self) {
  return reinterpret_cast<Wrapped*>(self)->model;
}

bool is_dynamo_compiling() {
  return pybind11::module_::import("torch.compiler").attr("is_compiling")().cast<bool>();
}

PyObject* get_attribute(PyObject* self, PyObject* name) {
  HANDLE_TH_ERRORS
  // copy and pickle ask the object how it is made: not as its model is.
  if (PyUnicode_CompareWithASCIIString(name, "__reduce_ex__") == 0) {
    return PyObject_GenericGetAttr(self, name);
  }
  // Dynamo would look into a module for what its class has not: to it this is an object that can be called.
  if (PyUnicode_CompareWithASCIIString(name, "__class__") == 0 && is_dynamo_compiling()) {
    return PyObject_GenericGetAttr(self, name);
  }
  return PyObject_GetAttr(model_of(self), name);
  END_HANDLE_TH_ERRORS
}

int set_attribute(PyObject* self, PyObject* name, PyObject* value) {
  return PyObject_SetAttr(model_of(self), name, value);
}

PyObject* get_item(PyObject* self, PyObject* key) {
  return PyObject_GetItem(model_of(self), key);
}

int set_item(PyObject* self, PyObject* key, PyObject* value) {
  return value == nullptr ? PyObject_DelItem(model_of(self), key) : PyObject_SetItem(model_of(self), key, value);
}

Py_ssize_t length(PyObject* self) {
  return PyObject_Size(model_of(self));
}

int contains(PyObject* self, PyObject* item) {
  return PySequence_Contains(model_of(self), item);
}

int truth(PyObject* self) {
  return PyObject_IsTrue(model_of(self));
}

PyObject* iterate(PyObject* self) {
  return PyObject_GetIter(model_of(self));
}

PyObject* text(PyObject* self) {
  return PyUnicode_FromFormat("graphmode.compile(%R)", model_of(self));
}

// A compiled function in a class is a method of the class, as the function would be.
PyObject* bind(PyObject* self, PyObject* object, PyObject*) {
  return object == nullptr || !PyFunction_Check(model_of(self)) ? Py_NewRef(self) : PyMethod_New(self, object);
}

PyObject* reduce(PyObject* self, PyObject*) {
  return PyObject_CallMethod(reinterpret_cast<Wrapped*>(self)->slow, "copied", nullptr);
}

PyMethodDef methods[] = {
    {"__reduce_ex__", &reduce, METH_O, "A copy is compiled anew, from a copy of the model."},
    {nullptr, nullptr, 0, nullptr},
};
PyMappingMethods mapping = {&length, &get_item, &set_item};
PySequenceMethods sequence = {};
PyNumberMethods number = {};

}  // namespace

void look_like_the_model(PyTypeObject& type) {
  sequence.sq_contains = &contains;
  number.nb_bool = &truth;
  type.tp_methods = methods;
  type.tp_as_mapping = &mapping;
  type.tp_as_sequence = &sequence;
  type.tp_as_number = &number;
  type.tp_iter = &iterate;
  type.tp_repr = &text;
  type.tp_getattro = &get_attribute;
  type.tp_setattro = &set_attribute;
  type.tp_descr_get = &bind;
}

}  // namespace graphmode
