// FastCall(slow, model): checks that a call is one that was seen before and calls the region's runner directly; every
// other call goes to `slow`, which is Dynamo's own path and learns. Owns the order of the checks; knows no graphs.
#include "fast_call.h"

#include <structmember.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "mode.h"
#include "pattern.h"
#include "result.h"
#include "runner.h"
#include "watch.h"
#include "wrapped.h"

namespace graphmode {

namespace {

struct Leaf {                      // a tensor among the arguments
  int same_as = -1;                // an earlier leaf that is the same object, or -1
  int given = -1;                  // the argument of the runner that is the same object and belongs to the trace, or -1
  std::optional<TensorForm> form;  // where the runner does not compare it
};

struct Path {
  Mode mode;
  uint64_t traced = 0;
  size_t positional = 0;
  THPObjectPtr names;  // of keyword arguments, or null
  std::vector<Pattern> arguments;
  std::vector<Leaf> leaves;
  std::vector<THPObjectPtr> held;                 // what the runner gets that belongs to the trace
  std::vector<PyObject*> given;                   // the runner's arguments: borrowed from `held`, or null for a leaf
  std::vector<std::pair<size_t, size_t>> places;  // (argument of the runner, leaf)
  Watch watch;
  THPObjectPtr check;  // Dynamo's guards that nothing here covers, on {"args", "kwargs", "model"}; or null
  THPObjectPtr runner;
  Result result;
  THPObjectPtr rebuild;  // Python callable on the flat results, where the result is of a type we do not build

  bool served = false;

  explicit Path(Watch w) : watch(std::move(w)) {}
};

struct FastObject : Wrapped {
  std::vector<std::shared_ptr<Path>>* paths;
  uint64_t served;
};

struct Call {  // one call's arguments, and the state it is made in
  PyObject* const* args;
  size_t positional;
  PyObject* names;  // of keyword arguments, or null
  Mode mode;
  uint64_t traced;

  Call(PyObject* const* a, size_t n, PyObject* k)
      : args(a), positional(n), names(k), mode(current_mode()), traced(traced_mode()) {}

  size_t named() const {
    return names == nullptr ? 0 : static_cast<size_t>(PyTuple_GET_SIZE(names));
  }
};

bool same_names(const Path& path, const Call& call) {
  PyObject* want = get(path.names);
  if (want == nullptr || call.names == nullptr) {
    return want == call.names || (want == nullptr && call.named() == 0);
  }
  const auto n = call.named();
  if (static_cast<size_t>(PyTuple_GET_SIZE(want)) != n) {
    return false;
  }
  for (size_t i = 0; i < n; ++i) {
    PyObject* a = PyTuple_GET_ITEM(call.names, static_cast<Py_ssize_t>(i));
    PyObject* b = PyTuple_GET_ITEM(want, static_cast<Py_ssize_t>(i));
    if (a != b && PyUnicode_Compare(a, b) != 0) {
      return false;
    }
  }
  return true;
}

// Structure, constants, identities and modes of the arguments; not the state outside them.
bool same_form(const Path& path, const Call& call, std::vector<PyObject*>& leaves) {
  if (path.mode != call.mode || path.traced != call.traced || path.positional != call.positional ||
      !same_names(path, call)) {
    return false;
  }
  leaves.clear();
  for (size_t i = 0; i < path.arguments.size(); ++i) {
    if (!path.arguments[i].match(call.args[i], leaves)) {
      return false;
    }
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    const auto& want = path.leaves[i];
    if (want.form && !want.form->match(leaves[i])) {
      return false;
    }
    for (size_t j = 0; j < i; ++j) {
      if (want.same_as < 0 ? leaves[i] == leaves[j]
                           : static_cast<size_t>(want.same_as) == j && leaves[i] != leaves[j]) {
        return false;
      }
    }
  }
  return true;
}

// An argument is a tensor that belongs to the trace just where it was one.
bool same_held(const Path& path, const std::vector<PyObject*>& leaves) {
  for (size_t i = 0; i < leaves.size(); ++i) {
    const int want = path.leaves[i].given;
    const bool same = want >= 0 ? path.given[static_cast<size_t>(want)] == leaves[i]
                                : std::find(path.given.begin(), path.given.end(), leaves[i]) == path.given.end();
    if (!same) {
      return false;
    }
  }
  return true;
}

bool guards_hold(const Path& path, const Call& call, PyObject* model) {
  if (!path.check) {
    return true;
  }
  THPObjectPtr args(PyTuple_New(static_cast<Py_ssize_t>(call.positional))), kwargs(PyDict_New()), scope(PyDict_New());
  if (!args || !kwargs || !scope) {
    throw python_error();
  }
  for (size_t i = 0; i < call.positional; ++i) {
    PyTuple_SET_ITEM(args.get(), static_cast<Py_ssize_t>(i), Py_NewRef(call.args[i]));
  }
  for (size_t i = 0; i < call.named(); ++i) {
    PyObject* name = PyTuple_GET_ITEM(call.names, static_cast<Py_ssize_t>(i));
    if (PyDict_SetItem(kwargs, name, call.args[call.positional + i]) < 0) {
      throw python_error();
    }
  }
  if (PyDict_SetItemString(scope, "args", args) < 0 || PyDict_SetItemString(scope, "kwargs", kwargs) < 0 ||
      PyDict_SetItemString(scope, "model", model) < 0) {
    throw python_error();
  }
  const THPObjectPtr held(PyObject_CallOneArg(get(path.check), scope));
  if (!held) {
    throw python_error();
  }
  return get(held) == Py_True;
}

PyObject* fast_call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* names) {
  HANDLE_TH_ERRORS
  auto* f = reinterpret_cast<FastObject*>(self);
  auto& paths = *f->paths;
  if (!paths.empty() && !is_observed()) {
    const Call call(args, static_cast<size_t>(PyVectorcall_NARGS(nargsf)), names);
    std::vector<PyObject*> leaves;
    leaves.reserve(16);
    for (size_t p = 0; p < paths.size(); ++p) {
      const std::shared_ptr<Path> path = paths[p];  // it may be dropped while guards or the runner run other code
      if (!same_form(*path, call, leaves) || !same_held(*path, leaves) || !path->watch.unchanged() ||
          !guards_hold(*path, call, f->model)) {
        continue;
      }
      c10::SmallVector<PyObject*, 64> given(path->given.begin(), path->given.end());
      for (const auto& [argument, leaf] : path->places) {
        given[argument] = leaves[leaf];
      }
      THPObjectPtr items(runner_try(get(path->runner), given.data(), given.size(), call.mode));
      if (!items) {
        continue;  // no graph for these sizes: another path's may fit, else Dynamo's
      }
      ++f->served;
      path->served = true;
      if (p > 0 && p < paths.size() && paths[p] == path) {
        const auto it = paths.begin() + static_cast<std::ptrdiff_t>(p);
        std::rotate(paths.begin(), it, it + 1);
      }
      return path->rebuild ? PyObject_CallOneArg(get(path->rebuild), items) : path->result.build(items, leaves);
    }
  }
  return PyObject_Vectorcall(f->slow, args, nargsf, names);
  END_HANDLE_TH_ERRORS
}

PyObject* fast_new(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *slow = nullptr, *model = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &slow, &model)) {
    return nullptr;
  }
  auto* self = reinterpret_cast<FastObject*>(type->tp_alloc(type, 0));
  if (self != nullptr) {
    self->vectorcall = &fast_call;
    self->slow = Py_NewRef(slow);
    self->model = Py_NewRef(model);
    self->weakrefs = nullptr;
    self->paths = new std::vector<std::shared_ptr<Path>>();
    self->served = 0;
  }
  return reinterpret_cast<PyObject*>(self);
}

int fast_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* f = reinterpret_cast<FastObject*>(self);
  Py_VISIT(f->slow);
  Py_VISIT(f->model);
  for (const auto& p : *f->paths) {
    Py_VISIT(get(p->check));
    Py_VISIT(get(p->runner));
    Py_VISIT(get(p->rebuild));
    for (const auto& h : p->held) {
      Py_VISIT(get(h));
    }
    int stop = p->watch.traverse(visit, arg);
    for (size_t i = 0; stop == 0 && i < p->arguments.size(); ++i) {
      stop = p->arguments[i].traverse(visit, arg);
    }
    if (stop != 0) {
      return stop;
    }
  }
  return 0;
}

int fast_clear(PyObject* self) {
  auto* f = reinterpret_cast<FastObject*>(self);
  Py_CLEAR(f->slow);
  Py_CLEAR(f->model);
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

PyTypeObject fast_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

FastObject* fast_of(const pybind11::handle& h) {
  if (Py_TYPE(h.ptr()) != &fast_type) {
    throw pybind11::type_error("expected a graphmode FastCall");
  }
  return reinterpret_cast<FastObject*>(h.ptr());
}

THPObjectPtr or_null(const pybind11::object& o) {
  return THPObjectPtr(o.is_none() ? nullptr : Py_NewRef(o.ptr()));
}

struct Given {  // arguments as Python functions get them
  std::vector<PyObject*> values;
  size_t positional;
  pybind11::tuple names;

  Given(const pybind11::tuple& args, const pybind11::dict& kwargs) : positional(args.size()) {
    for (const auto& a : args) {
      values.push_back(a.ptr());
    }
    pybind11::list keys;
    for (const auto& [key, value] : kwargs) {
      keys.append(key);
      values.push_back(value.ptr());
    }
    names = pybind11::tuple(keys);
  }

  Call call() const {
    return {values.data(), positional, names.empty() ? nullptr : names.ptr()};
  }
};

// Whether a call matches a path to this runner already, which had no graph for it.
bool knows(const pybind11::object& fast, const pybind11::tuple& args, const pybind11::dict& kwargs,
           const pybind11::object& runner) {
  const Given given(args, kwargs);
  std::vector<PyObject*> leaves;
  const auto& paths = *fast_of(fast)->paths;
  return std::any_of(paths.begin(), paths.end(), [&](const auto& p) {
    return get(p->runner) == runner.ptr() && same_form(*p, given.call(), leaves) && same_held(*p, leaves) &&
           p->watch.unchanged();
  });
}

// `sources`: per argument of the runner (index of a leaf, None) or (-1, object). `compared`: per leaf, whether its form
// is compared here. Returns how many paths went that had not served a call: no more than `keep` are held.
size_t learn(const pybind11::object& fast, const pybind11::tuple& args, const pybind11::dict& kwargs, Watch& watch,
             const std::vector<std::pair<int, pybind11::object>>& sources, const std::vector<bool>& compared,
             const pybind11::object& check, const pybind11::object& runner, const pybind11::object& result,
             const pybind11::object& rebuild, size_t keep) {
  TORCH_CHECK(is_runner(runner.ptr()), "expected a graphmode Runner");
  const Given given(args, kwargs);
  const Call call = given.call();
  auto& paths = *fast_of(fast)->paths;
  std::vector<PyObject*> leaves;
  auto path = std::make_shared<Path>(std::move(watch));
  path->mode = call.mode;
  path->traced = call.traced;
  path->positional = call.positional;
  path->names = THPObjectPtr(Py_XNewRef(call.names));
  path->check = or_null(check);
  path->runner = THPObjectPtr(Py_NewRef(runner.ptr()));
  leaves.clear();
  for (PyObject* value : given.values) {
    path->arguments.emplace_back(value);
    TORCH_CHECK(path->arguments.back().match(value, leaves), "an argument does not match itself");
  }
  TORCH_CHECK(leaves.size() == compared.size(), "expected ", leaves.size(), " leaves; got ", compared.size());
  for (const auto& [leaf, object] : sources) {
    if (leaf >= 0) {
      TORCH_CHECK_INDEX(static_cast<size_t>(leaf) < leaves.size(), "no leaf ", leaf);
      path->places.emplace_back(path->given.size(), static_cast<size_t>(leaf));
      path->given.push_back(nullptr);
    } else {
      path->held.emplace_back(Py_NewRef(object.ptr()));
      path->given.push_back(object.ptr());
    }
  }
  for (size_t i = 0; i < leaves.size(); ++i) {
    Leaf leaf;
    const auto earlier = std::find(leaves.begin(), leaves.begin() + static_cast<std::ptrdiff_t>(i), leaves[i]);
    leaf.same_as = static_cast<size_t>(earlier - leaves.begin()) < i ? static_cast<int>(earlier - leaves.begin()) : -1;
    const auto held = std::find(path->given.begin(), path->given.end(), leaves[i]);
    leaf.given = held == path->given.end() ? -1 : static_cast<int>(held - path->given.begin());
    if (compared[i]) {
      leaf.form.emplace(leaves[i]);
    }
    path->leaves.push_back(std::move(leaf));
  }
  if (rebuild.is_none()) {
    path->result = Result(result.cast<pybind11::tuple>());
  } else {
    path->rebuild = or_null(rebuild);
  }
  std::vector<std::shared_ptr<Path>> dropped, kept{std::move(path)};
  for (auto& old : paths) {
    const bool replaced = get(old->runner) == runner.ptr() && same_form(*old, call, leaves);
    (replaced || kept.size() >= keep ? dropped : kept).push_back(std::move(old));
  }
  paths = std::move(kept);  // before what the others held dies, which may call back
  return static_cast<size_t>(
      std::count_if(dropped.begin(), dropped.end(), [](const auto& old) { return !old->served; }));
}

}  // namespace

void bind_fast_call(pybind11::module_& m) {
  fast_type.tp_name = "graphmode._C.FastCall";
  fast_type.tp_basicsize = sizeof(FastObject);
  fast_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
  fast_type.tp_doc = "FastCall(slow, model): calls a runner directly for calls seen before, else slow(...).";
  fast_type.tp_new = &fast_new;
  fast_type.tp_dealloc = &fast_dealloc;
  fast_type.tp_traverse = &fast_traverse;
  fast_type.tp_clear = &fast_clear;
  fast_type.tp_call = &PyVectorcall_Call;
  fast_type.tp_vectorcall_offset = offsetof(Wrapped, vectorcall);
  fast_type.tp_weaklistoffset = offsetof(Wrapped, weakrefs);
  look_like_the_model(fast_type);
  if (PyType_Ready(&fast_type) < 0) {
    throw pybind11::error_already_set();
  }
  m.add_object("FastCall", pybind11::handle(reinterpret_cast<PyObject*>(&fast_type)));
  m.def("fast_knows", &knows);
  m.def("fast_learn", &learn);
  m.def("fast_served", [](const pybind11::object& fast) { return fast_of(fast)->served; });
  m.def("fast_forget", [](const pybind11::object& fast) {
    const auto dropped = std::move(*fast_of(fast)->paths);
    fast_of(fast)->paths->clear();
  });
}

}  // namespace graphmode
