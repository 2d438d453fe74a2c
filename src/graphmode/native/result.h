// How the user's result is made of the runner's.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "watch.h"

namespace graphmode {

class Result {
 public:
  Result() = default;

  // ("item", i) | ("leaf", i) | ("constant", object) | ("tuple"|"list", [...]) | ("dict", keys, [...])
  explicit Result(const pybind11::tuple& shape);

  // A new reference, or null with an error set. `items`: the runner's results; `leaves`: the arguments' tensors.
  PyObject* build(PyObject* items, const std::vector<PyObject*>& leaves) const;

 private:
  enum Kind : uint8_t { Item, Leaf, Constant, Tuple, List, Dict } kind_ = Item;
  int index_ = -1;
  THPObjectPtr object_;  // Constant; Dict: tuple of keys
  std::vector<Result> items_;
};

}  // namespace graphmode
