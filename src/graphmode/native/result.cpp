#include "result.h"

#include <string>

namespace graphmode {

Result::Result(const pybind11::tuple& shape) {
  const auto kind = shape[0].cast<std::string>();
  if (kind == "item" || kind == "leaf") {
    kind_ = kind == "item" ? Item : Leaf;
    index_ = shape[1].cast<int>();
  } else if (kind == "constant") {
    kind_ = Constant;
    object_ = THPObjectPtr(Py_NewRef(shape[1].ptr()));
  } else {
    kind_ = kind == "tuple" ? Tuple : kind == "list" ? List : Dict;
    if (kind_ == Dict) {
      object_ = THPObjectPtr(PySequence_Tuple(shape[1].ptr()));
    }
    for (const auto& item : shape[shape.size() - 1].cast<pybind11::list>()) {
      items_.emplace_back(item.cast<pybind11::tuple>());
    }
  }
}

PyObject* Result::build(PyObject* items, const std::vector<PyObject*>& leaves) const {
  switch (kind_) {
    case Item:
      return Py_NewRef(PyTuple_GET_ITEM(items, index_));
    case Leaf:
      return Py_NewRef(leaves[static_cast<size_t>(index_)]);
    case Constant:
      return Py_NewRef(get(object_));
    case Tuple:
    case List: {
      const auto n = static_cast<Py_ssize_t>(items_.size());
      THPObjectPtr out(kind_ == Tuple ? PyTuple_New(n) : PyList_New(n));
      for (Py_ssize_t i = 0; out && i < n; ++i) {
        PyObject* item = items_[static_cast<size_t>(i)].build(items, leaves);
        if (item == nullptr) {
          return nullptr;
        }
        if (kind_ == Tuple) {
          PyTuple_SET_ITEM(out.get(), i, item);
        } else {
          PyList_SET_ITEM(out.get(), i, item);
        }
      }
      return out.release();
    }
    case Dict: {
      THPObjectPtr out(PyDict_New());
      for (size_t i = 0; out && i < items_.size(); ++i) {
        THPObjectPtr item(items_[i].build(items, leaves));
        if (!item || PyDict_SetItem(out.get(), PyTuple_GET_ITEM(get(object_), static_cast<Py_ssize_t>(i)), item) < 0) {
          return nullptr;
        }
      }
      return out.release();
    }
  }
  return nullptr;
}

}  // namespace graphmode
