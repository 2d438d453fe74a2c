// State outside a call's arguments, and whether it is still what it was.
#pragma once

#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <vector>

namespace graphmode {

// THPObjectPtr::get() const gives a const object, which Python's API does not take.
inline PyObject* get(const THPObjectPtr& p) {
  return const_cast<THPObjectPtr&>(p).get();
}

class Watch {
 public:
  // ("dict", dict) | ("items", list) | ("keys", OrderedDict) | ("entry", dict, key, value) | ("attribute", object,
  // name, value) |
  // ("object", object) | ("type", type)
  explicit Watch(const pybind11::list& entries);

  // Runs no code of the user's; may be asked at every call.
  bool unchanged() const;

  int traverse(visitproc visit, void* arg) const;

 private:
  struct Dict {  // compared by version, and where it is an object's: that it still is, and the object's type
    THPObjectPtr dict, owner;
    uint64_t tag = 0;
    PyObject** slot = nullptr;  // where the owner has its dict
    PyTypeObject* type = nullptr;
  };
  struct List {
    THPObjectPtr list, items;  // the items as a tuple
  };
  struct Value {  // one entry of a dict, or one attribute
    THPObjectPtr owner, name, value;
  };
  struct Type {
    explicit Type(PyTypeObject* type);
    bool unchanged() const;
    THPObjectPtr type, mro;
    std::vector<std::pair<PyTypeObject*, THPObjectPtr>> contents;  // what each class in the mro had
    // The version is another one too where something was set and put back, as Dynamo does.
    mutable unsigned int tag = 0;
  };

  void add_object(PyObject* object);

  std::vector<Dict> dicts_;
  std::vector<std::pair<THPObjectPtr, PyTypeObject*>> bare_;  // objects without a dict, and their types
  std::vector<List> lists_;
  std::vector<List> orders_;  // of the keys of an OrderedDict
  std::vector<Value> entries_, attributes_;
  std::vector<Type> types_;
};

void bind_watch(pybind11::module_& m);

}  // namespace graphmode
