// An object in the place of a model: what it is asked for besides calls is the model's.
#pragma once

#include <Python.h>

namespace graphmode {

struct Wrapped {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject* slow;  // has `copied(model)`: what a copy of the object is made by
  PyObject* model;
  PyObject* weakrefs;
};

// Attributes, items, length, iteration, class and text are the model's. For types whose objects begin with a Wrapped.
void look_like_the_model(PyTypeObject& type);

}  // namespace graphmode
