// What a call's arguments must look like: structure, constants and identities; which tensors they bring.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <vector>

namespace graphmode {

struct Pattern {
  enum Kind : uint8_t { Tensor, Constant, Same, Tuple, List, Dict } kind = Constant;
  THPObjectPtr object;  // Constant: equal to it; Same: this very object; Dict: tuple of keys, in order
  std::vector<Pattern> items;

  explicit Pattern(PyObject* o);

  // Appends the tensors it meets to `leaves`.
  bool match(PyObject* o, std::vector<PyObject*>& leaves) const;

  int traverse(visitproc visit, void* arg) const;
};

// All that Dynamo guards of a tensor.
struct TensorForm {
  PyTypeObject* type = nullptr;  // borrowed: a type seen in a live call
  c10::DispatchKeySet keys;
  caffe2::TypeMeta dtype;
  std::vector<int64_t> sizes, strides;
  int64_t storage_offset = 0;
  bool requires_grad = false;

  explicit TensorForm(PyObject* o);
  bool match(PyObject* o) const;
};

}  // namespace graphmode
