// FastCall(slow): checks that a call is one that was seen before and calls the region's runner directly; everything
// else goes to `slow`, which is Dynamo's own path and learns. Owns the checks; knows nothing of graphs.
#include "fast_call.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <structmember.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <cstring>

#include "runner.h"

namespace graphmode {

namespace {

// THPObjectPtr::get() const gives a const object, which Python's API does not take.
PyObject* get(const THPObjectPtr& p) {
  return const_cast<THPObjectPtr&>(p).get();
}

uint64_t call_mode() {
  uint64_t bits = mode_bits();
  bits = bits << 1 | c10::GradMode::is_enabled();
  bits = bits << 1 | at::autocast::is_autocast_enabled(at::kCPU);
  bits = bits << 5 | static_cast<uint64_t>(at::autocast::get_autocast_dtype(at::kCPU));
  bits = bits << 1 | (at::impl::PythonTorchFunctionTLS::stack_len() > 0);
  bits = bits << 1 | c10::impl::TorchDispatchModeTLS::any_modes_set();
  return bits;
}

uint64_t dict_tag(PyObject* dict) {
  // Changes whenever an entry of the dict is set or deleted, and is unique over all dicts.
#if PY_VERSION_HEX < 0x030C0000
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
  return 0;  // no such tag: `watch` refuses dicts, so calls take the slow path
#endif
}

// The shape of an argument: what must be equal, and which tensors it brings.
struct Pattern {
  enum Kind : uint8_t { Tensor, Constant, Same, Tuple, List, Dict } kind = Constant;
  THPObjectPtr object;  // Constant: equal to it; Same: this very object; Dict: tuple of keys, in order
  std::vector<Pattern> items;

  explicit Pattern(PyObject* o) {
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
      const bool plain = o == Py_None || PyBool_Check(o) || PyLong_CheckExact(o) || PyFloat_CheckExact(o) ||
                         PyUnicode_CheckExact(o) || PyBytes_CheckExact(o);
      kind = plain ? Constant : Same;
      object = THPObjectPtr(Py_NewRef(o));
    }
  }

  bool match(PyObject* o, std::vector<PyObject*>& leaves) const {
    switch (kind) {
      case Tensor:
        leaves.push_back(o);  // the runner compares dtype, sizes and the rest
        return THPVariable_Check(o);
      case Same:
        return o == get(object);
      case Constant: {
        if (o == get(object)) {
          return true;
        }
        if (Py_TYPE(o) != Py_TYPE(get(object))) {
          return false;
        }
        if (PyFloat_CheckExact(o)) {  // by bits: 0.0 is not -0.0, and a NaN is itself
          const double a = PyFloat_AS_DOUBLE(o), b = PyFloat_AS_DOUBLE(get(object));
          return std::memcmp(&a, &b, sizeof a) == 0;
        }
        const int equal = PyObject_RichCompareBool(o, get(object), Py_EQ);
        if (equal < 0) {
          throw python_error();
        }
        return equal == 1;
      }
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
          if (key != want) {
            const int equal = PyObject_RichCompareBool(key, want, Py_EQ);
            if (equal < 0) {
              throw python_error();
            }
            if (equal == 0) {
              return false;
            }
          }
          if (!items[i++].match(value, leaves)) {
            return false;
          }
        }
        return true;
      }
    }
    return false;
  }

  void leaves(PyObject* o, std::vector<PyObject*>& to) const {
    if (!match(o, to)) {
      throw std::runtime_error("an argument does not match itself");
    }
  }
};

struct Watched {  // state outside the arguments that the traced code read
  enum Kind : uint8_t { DictTag, ListItems, DictItem } kind;
  THPObjectPtr object, key, value;
  uint64_t tag = 0;
  std::vector<PyObject*> items;  // borrowed, compared by identity; kept alive by `value`
};

struct Source {       // of one argument of the runner
  int leaf = -1;      // a tensor of the call's arguments, or
  THPObjectPtr held;  // a tensor or an integer that belongs to the trace
};

struct Result {  // how the user's result is made of the runner's
  enum Kind : uint8_t { Item, Leaf, Constant, Tuple, List, Dict } kind = Item;
  int index = -1;
  THPObjectPtr object;  // Constant; Dict: tuple of keys
  std::vector<Result> items;
};

struct Path {
  uint64_t mode = 0;
  size_t positional = 0;
  THPObjectPtr names;  // of keyword arguments, or null
  std::vector<Pattern> arguments;
  std::vector<int> same_as;  // per leaf: an earlier leaf that is the same object, or -1
  std::vector<Watched> watched;
  std::vector<Source> sources;
  THPObjectPtr runner;
  Result result;
  THPObjectPtr rebuild;  // Python callable on the flat results, where the result is of a type we do not build
  uint64_t hits = 0;
};

struct FastObject {
  PyObject_HEAD vectorcallfunc vectorcall;
  std::vector<std::shared_ptr<Path>>* paths;
  PyObject* slow;
  PyObject* dict;
  PyObject* weakrefs;
};

bool unchanged(const Path& path) {
  for (const auto& w : path.watched) {
    switch (w.kind) {
      case Watched::DictTag:
        if (dict_tag(get(w.object)) != w.tag) {
          return false;
        }
        break;
      case Watched::ListItems: {
        PyObject* list = get(w.object);
        if (PyList_GET_SIZE(list) != static_cast<Py_ssize_t>(w.items.size())) {
          return false;
        }
        for (size_t i = 0; i < w.items.size(); ++i) {
          if (PyList_GET_ITEM(list, static_cast<Py_ssize_t>(i)) != w.items[i]) {
            return false;
          }
        }
        break;
      }
      case Watched::DictItem:
        if (PyDict_GetItem(get(w.object), get(w.key)) != get(w.value)) {
          return false;
        }
        break;
    }
  }
  return true;
}

// Structure, constants and modes; not the tensors' sizes, nor the state outside the arguments.
bool same_form(const Path& path, PyObject* const* args, size_t positional, PyObject* names, uint64_t mode,
               std::vector<PyObject*>& leaves) {
  if (path.mode != mode || path.positional != positional) {
    return false;
  }
  const auto named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  const auto wanted = get(path.names) == nullptr ? 0 : PyTuple_GET_SIZE(get(path.names));
  if (named != wanted) {
    return false;
  }
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject *a = PyTuple_GET_ITEM(names, i), *b = PyTuple_GET_ITEM(get(path.names), i);
    if (a != b && PyUnicode_Compare(a, b) != 0) {
      return false;
    }
  }
  leaves.clear();
  for (size_t i = 0; i < path.arguments.size(); ++i) {
    if (!path.arguments[i].match(args[i], leaves)) {
      return false;
    }
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (path.same_as[i] >= 0) {
      if (leaves[i] != leaves[static_cast<size_t>(path.same_as[i])]) {
        return false;
      }
    } else {
      for (size_t j = 0; j < i; ++j) {
        if (leaves[i] == leaves[j]) {
          return false;
        }
      }
    }
  }
  return true;
}

PyObject* build(const Result& r, PyObject* items, const std::vector<PyObject*>& leaves) {
  switch (r.kind) {
    case Result::Item:
      return Py_NewRef(PyTuple_GET_ITEM(items, r.index));
    case Result::Leaf:
      return Py_NewRef(leaves[static_cast<size_t>(r.index)]);
    case Result::Constant:
      return Py_NewRef(get(r.object));
    case Result::Tuple:
    case Result::List: {
      const auto n = static_cast<Py_ssize_t>(r.items.size());
      THPObjectPtr out(r.kind == Result::Tuple ? PyTuple_New(n) : PyList_New(n));
      for (Py_ssize_t i = 0; out && i < n; ++i) {
        PyObject* item = build(r.items[static_cast<size_t>(i)], items, leaves);
        if (item == nullptr) {
          return nullptr;
        }
        if (r.kind == Result::Tuple) {
          PyTuple_SET_ITEM(out.get(), i, item);
        } else {
          PyList_SET_ITEM(out.get(), i, item);
        }
      }
      return out.release();
    }
    case Result::Dict: {
      THPObjectPtr out(PyDict_New());
      for (size_t i = 0; out && i < r.items.size(); ++i) {
        THPObjectPtr item(build(r.items[i], items, leaves));
        if (!item || PyDict_SetItem(out.get(), PyTuple_GET_ITEM(get(r.object), static_cast<Py_ssize_t>(i)), item) < 0) {
          return nullptr;
        }
      }
      return out.release();
    }
  }
  return nullptr;
}

PyObject* fast_call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* names) {
  HANDLE_TH_ERRORS
  auto* f = reinterpret_cast<FastObject*>(self);
  const auto positional = static_cast<size_t>(PyVectorcall_NARGS(nargsf));
  auto& paths = *f->paths;
  if (!paths.empty()) {
    const uint64_t mode = call_mode();
    std::vector<PyObject*> leaves;
    leaves.reserve(16);
    for (size_t p = 0; p < paths.size(); ++p) {
      if (!same_form(*paths[p], args, positional, names, mode, leaves) || !unchanged(*paths[p])) {
        continue;
      }
      const std::shared_ptr<Path> path = paths[p];  // it may be dropped while the runner runs without the GIL
      c10::SmallVector<PyObject*, 64> call;
      call.reserve(path->sources.size());
      for (const auto& s : path->sources) {
        call.push_back(s.leaf >= 0 ? leaves[static_cast<size_t>(s.leaf)] : get(s.held));
      }
      THPObjectPtr items(runner_try(get(path->runner), call.data(), call.size()));
      if (!items) {
        continue;  // no graph for these sizes: another path's may fit, else Dynamo's
      }
      ++path->hits;
      if (p > 0 && p < paths.size() && paths[p] == path) {
        const auto it = paths.begin() + static_cast<std::ptrdiff_t>(p);
        std::rotate(paths.begin(), it, it + 1);
      }
      return path->rebuild ? PyObject_CallOneArg(get(path->rebuild), items) : build(path->result, items, leaves);
    }
  }
  return PyObject_Vectorcall(f->slow, args, nargsf, names);
  END_HANDLE_TH_ERRORS
}

// Attributes that are not the wrapper's are the model's.
PyObject* fast_getattr(PyObject* self, PyObject* name) {
  PyObject* own = PyObject_GenericGetAttr(self, name);
  auto* f = reinterpret_cast<FastObject*>(self);
  if (own != nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError) || f->dict == nullptr) {
    return own;
  }
  PyObject* model = PyDict_GetItemString(f->dict, "model");
  if (model == nullptr) {
    return nullptr;
  }
  PyErr_Clear();
  return PyObject_GetAttr(model, name);
}

PyObject* fast_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* slow = nullptr;
  if (!PyArg_ParseTuple(args, "O", &slow)) {
    return nullptr;
  }
  auto* self = reinterpret_cast<FastObject*>(type->tp_alloc(type, 0));
  if (self != nullptr) {
    self->vectorcall = &fast_call;
    self->paths = new std::vector<std::shared_ptr<Path>>();
    self->slow = Py_NewRef(slow);
    self->dict = nullptr;
    self->weakrefs = nullptr;
  }
  return reinterpret_cast<PyObject*>(self);
}

int fast_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* f = reinterpret_cast<FastObject*>(self);
  Py_VISIT(f->slow);
  Py_VISIT(f->dict);
  for (const auto& p : *f->paths) {
    Py_VISIT(get(p->runner));
    Py_VISIT(get(p->rebuild));
    for (const auto& w : p->watched) {
      Py_VISIT(get(w.object));
      Py_VISIT(get(w.value));
    }
    for (const auto& s : p->sources) {
      Py_VISIT(get(s.held));
    }
    for (const auto& a : p->arguments) {
      if (a.kind == Pattern::Same) {
        Py_VISIT(get(a.object));
      }
    }
  }
  return 0;
}

int fast_clear(PyObject* self) {
  auto* f = reinterpret_cast<FastObject*>(self);
  Py_CLEAR(f->slow);
  Py_CLEAR(f->dict);
  auto paths = std::move(*f->paths);
  f->paths->clear();
  return 0;
}

void fast_dealloc(PyObject* self) {
  auto* f = reinterpret_cast<FastObject*>(self);
  PyObject_GC_UnTrack(self);
  if (f->weakrefs != nullptr) {
    PyObject_ClearWeakRefs(self);
  }
  fast_clear(self);
  delete f->paths;
  Py_TYPE(self)->tp_free(self);
}

PyMemberDef fast_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(FastObject, vectorcall), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(FastObject, dict), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(FastObject, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyTypeObject fast_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

FastObject* fast_of(const pybind11::handle& h) {
  if (Py_TYPE(h.ptr()) != &fast_type) {
    throw pybind11::type_error("expected a graphmode FastCall");
  }
  return reinterpret_cast<FastObject*>(h.ptr());
}

// ("item", i) | ("leaf", i) | ("constant", object) | ("tuple"|"list", [...]) | ("dict", keys, [...])
Result result_of(const pybind11::tuple& t) {
  Result r;
  const auto kind = t[0].cast<std::string>();
  if (kind == "item" || kind == "leaf") {
    r.kind = kind == "item" ? Result::Item : Result::Leaf;
    r.index = t[1].cast<int>();
  } else if (kind == "constant") {
    r.kind = Result::Constant;
    r.object = THPObjectPtr(Py_NewRef(t[1].ptr()));
  } else {
    r.kind = kind == "tuple" ? Result::Tuple : kind == "list" ? Result::List : Result::Dict;
    if (r.kind == Result::Dict) {
      r.object = THPObjectPtr(PySequence_Tuple(t[1].ptr()));
    }
    for (const auto& item : t[t.size() - 1].cast<pybind11::list>()) {
      r.items.push_back(result_of(item.cast<pybind11::tuple>()));
    }
  }
  return r;
}

void learn(const pybind11::object& fast, const pybind11::tuple& args, const pybind11::dict& kwargs,
           const pybind11::list& watched, const pybind11::list& sources, const pybind11::object& runner,
           const pybind11::object& result, const pybind11::object& rebuild) {
  auto path = std::make_shared<Path>();
  path->mode = call_mode();
  path->positional = args.size();
  std::vector<PyObject*> leaves;
  auto take = [&](PyObject* o) {
    path->arguments.emplace_back(o);
    path->arguments.back().leaves(o, leaves);
  };
  for (const auto& a : args) {
    take(a.ptr());
  }
  pybind11::list names;
  for (const auto& [key, value] : kwargs) {
    names.append(key);
    take(value.ptr());
  }
  if (names.size() > 0) {
    path->names = THPObjectPtr(PySequence_Tuple(names.ptr()));
  }
  path->same_as.assign(leaves.size(), -1);
  for (size_t i = 0; i < leaves.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (leaves[i] == leaves[j]) {
        path->same_as[i] = static_cast<int>(j);
        break;
      }
    }
  }
  for (const auto& entry : watched) {
    auto w = entry.cast<pybind11::tuple>();
    Watched one{};
    one.object = THPObjectPtr(Py_NewRef(w[0].ptr()));
    if (w.size() == 2) {
      one.kind = Watched::DictItem;
      one.key = THPObjectPtr(Py_NewRef(w[1].ptr()));
      one.value = THPObjectPtr(Py_XNewRef(PyDict_GetItem(get(one.object), get(one.key))));
    } else if (PyDict_Check(w[0].ptr())) {
      one.kind = Watched::DictTag;
      one.tag = dict_tag(w[0].ptr());
      TORCH_CHECK(one.tag != 0, "this Python has no version tags on dicts");
    } else {
      one.kind = Watched::ListItems;
      one.value = THPObjectPtr(PySequence_Tuple(w[0].ptr()));
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(get(one.value)); ++i) {
        one.items.push_back(PyTuple_GET_ITEM(get(one.value), i));
      }
    }
    path->watched.push_back(std::move(one));
  }
  for (const auto& s : sources) {
    Source one;
    auto at = std::find(leaves.begin(), leaves.end(), s.ptr());
    if (at != leaves.end()) {
      one.leaf = static_cast<int>(at - leaves.begin());
    } else {
      one.held = THPObjectPtr(Py_NewRef(s.ptr()));
    }
    path->sources.push_back(std::move(one));
  }
  TORCH_CHECK(is_runner(runner.ptr()), "expected a graphmode Runner");
  path->runner = THPObjectPtr(Py_NewRef(runner.ptr()));
  if (!rebuild.is_none()) {
    path->rebuild = THPObjectPtr(Py_NewRef(rebuild.ptr()));
  } else {
    path->result = result_of(result.cast<pybind11::tuple>());
  }
  auto& paths = *fast_of(fast)->paths;
  // What this path replaces: the same runner for a call of the same form, learned before something changed.
  auto replaced = [&](const std::shared_ptr<Path>& old) {
    std::vector<PyObject*> found;
    std::vector<PyObject*> values;
    for (const auto& a : args) {
      values.push_back(a.ptr());
    }
    for (const auto& item : kwargs) {
      values.push_back(item.second.ptr());
    }
    return get(old->runner) == get(path->runner) &&
           same_form(*old, values.data(), path->positional, get(path->names), path->mode, found);
  };
  paths.erase(std::remove_if(paths.begin(), paths.end(), replaced), paths.end());
  paths.insert(paths.begin(), std::move(path));
}

}  // namespace

void bind_fast_call(pybind11::module_& m) {
  fast_type.tp_name = "graphmode._C.FastCall";
  fast_type.tp_basicsize = sizeof(FastObject);
  fast_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
  fast_type.tp_doc = "FastCall(slow): calls a runner directly for calls seen before, else slow(*args, **kwargs).";
  fast_type.tp_new = &fast_new;
  fast_type.tp_dealloc = &fast_dealloc;
  fast_type.tp_traverse = &fast_traverse;
  fast_type.tp_clear = &fast_clear;
  fast_type.tp_call = &PyVectorcall_Call;
  fast_type.tp_members = fast_members;
  fast_type.tp_vectorcall_offset = offsetof(FastObject, vectorcall);
  fast_type.tp_dictoffset = offsetof(FastObject, dict);
  fast_type.tp_weaklistoffset = offsetof(FastObject, weakrefs);
  fast_type.tp_getattro = &fast_getattr;
  fast_type.tp_setattro = &PyObject_GenericSetAttr;
  if (PyType_Ready(&fast_type) < 0) {
    throw pybind11::error_already_set();
  }
  m.add_object("FastCall", pybind11::handle(reinterpret_cast<PyObject*>(&fast_type)));
  m.def("fast_learn", &learn);
  m.def("fast_paths", [](const pybind11::object& fast) {
    std::vector<uint64_t> hits;
    for (const auto& p : *fast_of(fast)->paths) {
      hits.push_back(p->hits);
    }
    return hits;
  });
  m.def("fast_keep", [](const pybind11::object& fast, size_t n) {
    auto& paths = *fast_of(fast)->paths;
    if (paths.size() > n) {
      paths.resize(n);
    }
  });
}

}  // namespace graphmode
