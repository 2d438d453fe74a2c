// The hot path of one compiled region: a flat check of the arguments, a replay, the outputs. A call that no graph fits
// goes to `miss`, where policy is. Owns the graphs of the region; decides nothing.
#include "runner.h"

#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <structmember.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "recorder.h"

namespace graphmode {

namespace {

struct ArgCheck {  // of hundreds at each call: what is compared first lies together
  enum Kind : uint8_t { Tensor, Int, Object } kind = Object;
  // Tensor
  bool requires_grad = false;  // which code traced by Dynamo may have asked for
  bool written = false;
  uint32_t rank = 0, dims = 0;   // where the sizes begin among the entry's; the strides follow
  PyTypeObject* type = nullptr;  // borrowed: a type seen in a live call
  c10::DispatchKeySet keys;
  caffe2::TypeMeta dtype;
  bool given = false;          // handed on: its sizes and its place matter to the op alone
  const char* home = nullptr;  // the address that the graph reads it at
  bool placed = false;         // the place in the storage matters:
  bool absolute = false;       // must be the same; else only the rest by `align` bytes
  int64_t storage_offset = 0;  // elements, at capture
  int64_t align = 1;
  int64_t needs = 0;  // bytes of storage
  int alias_of = -1;  // earlier argument on the same memory
  std::ptrdiff_t alias_distance = 0;
  int64_t lo = 0, hi = 0;  // bytes touched, from the first element
  // Int
  long integer = 0;
  bool told = false;  // any is right: the replay is told it
  // Object: of a type that torch knows as opaque, which custom ops take as it is; or a float, by its bits
  bool by_value = false;       // equal when they say so; else the same
  PyObject* object = nullptr;  // held among the entry's
};

struct Entry {
  int64_t id = 0;
  Mode mode;
  std::vector<ArgCheck> args;
  std::vector<int64_t> dims;  // sizes and strides of the arguments, one after the other
  std::shared_ptr<Replayable> graph;
  std::vector<std::pair<size_t, THPObjectPtr>> objects;  // arguments of ArgCheck::Object
  std::vector<std::pair<int, THPObjectPtr>> outputs;     // index into the replay's results, or -1 and a constant
  std::vector<size_t> told;                              // arguments that are integers which the replay is told
  std::vector<const char*> last;                         // addresses at the last overlap check
  std::vector<std::pair<const void*, const void*>> met;  // tensors and their storages at the last call; never followed
  bool checked = false;
  bool any_written = false;
  uint64_t replays = 0, used = 0;
};

// Outlives its runner, so that the count of a region that died stays in the sum.
struct ReplayCount {
  uint64_t replays = 0;
};

struct State {
  std::vector<std::shared_ptr<Entry>> entries;  // most recently used first
  uint64_t clock = 0;
  std::shared_ptr<ReplayCount> count = std::make_shared<ReplayCount>();
  int64_t next_id = 1;
  bool enables_grad = false;  // the program switches gradients on
  int8_t leaves_grad = -1;    // the mode it leaves set; -1: the caller's
};

struct RunnerObject {
  PyObject_HEAD vectorcallfunc vectorcall;
  State* state;
  PyObject* miss;
  PyObject* diverged;
  PyObject* dict;
  PyObject* weakrefs;
};

bool same(c10::IntArrayRef a, const int64_t* b) {
  for (size_t i = 0; i < a.size(); ++i) {  // a few numbers: faster than memcmp's call
    if (a[i] != b[i]) {
      return false;
    }
  }
  return true;
}

// The graph looks outside the tensor's own extent, or reads it as larger elements.
bool placed_as_recorded(const ArgCheck& want, const c10::TensorImpl& t) {
  const auto item = static_cast<int64_t>(t.itemsize());
  if (want.absolute ? t.storage_offset() != want.storage_offset
                    : (t.storage_offset() - want.storage_offset) * item % want.align != 0) {
    return false;
  }
  return !want.absolute || static_cast<int64_t>(t.unsafe_storage().nbytes()) >= want.needs;
}

// A tensor of forward-mode AD: its results have tangents too, in every grad mode.
bool has_tangent(const c10::TensorImpl* impl) {
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(impl->autograd_meta());
  return meta != nullptr && meta->fw_grad_ != nullptr && !meta->fw_grad_->empty();
}

// As Tensor::requires_grad, but without its two calls where no view asks its base.
bool requires_grad(c10::TensorImpl* impl) {
  const auto* meta = static_cast<const torch::autograd::AutogradMeta*>(impl->autograd_meta());
  return meta != nullptr && (meta->is_view_ ? meta->requires_grad() : meta->requires_grad_ || meta->grad_fn_);
}

const char* address(const at::Tensor& t) {
  auto* impl = t.unsafeGetTensorImpl();
  return static_cast<const char*>(impl->unsafe_storage().unsafeGetStorageImpl()->data()) +
         impl->storage_offset() * static_cast<int64_t>(impl->itemsize());
}

// Called when an address changed since the last time: do the arguments lie to each other as at capture?
bool overlaps_as_recorded(Entry& e, const at::Tensor* const* tensors) {
  for (size_t i = 0; i < e.args.size(); ++i) {
    const auto& a = e.args[i];
    if (a.kind == ArgCheck::Tensor && a.alias_of >= 0 && e.last[i] - e.last[a.alias_of] != a.alias_distance) {
      return false;
    }
  }
  for (size_t w = 0; e.any_written && w < e.args.size(); ++w) {
    const auto& a = e.args[w];
    if (!a.written) {
      continue;
    }
    tensors[w]
        ->storage()
        .unsafeGetStorageImpl()
        ->mutable_data();  // a lazy copy gets memory of its own before it is written
    e.last[w] = address(*tensors[w]);
    const int root = a.alias_of < 0 ? static_cast<int>(w) : a.alias_of;
    for (size_t j = 0; j < e.args.size(); ++j) {
      const auto& b = e.args[j];
      if (b.kind != ArgCheck::Tensor || j == w || (b.alias_of < 0 ? static_cast<int>(j) : b.alias_of) == root) {
        continue;
      }
      if (e.last[w] + a.lo < e.last[j] + b.hi && e.last[j] + b.lo < e.last[w] + a.hi) {
        return false;
      }
    }
  }
  return true;
}

// Opaque values are equal when they say so, opaque references when they are the same: that is what their types promise.
bool same_object(const ArgCheck& want, PyObject* got) {
  if (got == want.object) {
    return true;
  }
  if (PyFloat_CheckExact(want.object)) {
    return PyFloat_CheckExact(got) &&
           std::bit_cast<uint64_t>(PyFloat_AS_DOUBLE(got)) == std::bit_cast<uint64_t>(PyFloat_AS_DOUBLE(want.object));
  }
  if (!want.by_value || Py_TYPE(got) != want.type) {
    return false;
  }
  const int equal = PyObject_RichCompareBool(got, want.object, Py_EQ);
  if (equal < 0) {
    PyErr_Clear();
  }
  return equal == 1;
}

bool fits_64_bits(PyObject* integer) {
  return PyLong_AsLong(integer) != -1 || PyErr_Occurred() == nullptr;
}

// After a model ran, nothing of its hundreds of weights is in the processor's cache any more, and a look at one follows
// four addresses, each found by the one before. So what was met the last time is fetched ahead, all at once.
void fetch_ahead(const Entry& e, PyObject* const* args, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    __builtin_prefetch(args[i]);
  }
  for (const auto& [tensor, storage] : e.met) {
    for (size_t line = 0; line < sizeof(c10::TensorImpl); line += 64) {
      __builtin_prefetch(static_cast<const char*>(tensor) + line);
    }
    __builtin_prefetch(storage);
  }
}

// `tensors` gets one pointer per argument; null where the argument is no tensor.
bool matches(Entry& e, PyObject* const* args, size_t n, const Mode& mode, bool grad, const at::Tensor** tensors) {
  if (e.mode != mode || e.args.size() != n) {
    return false;
  }
  for (const auto& [i, object] : e.objects) {  // first, since it may run Python, and with it other calls
    if (!same_object(e.args[i], args[i])) {
      return false;
    }
  }
  e.met.resize(n);
  bool moved = !e.checked;
  e.checked = false;  // until every argument was looked at
  for (size_t i = 0; i < n; ++i) {
    const auto& want = e.args[i];
    PyObject* got = args[i];
    if (want.kind == ArgCheck::Tensor) {
      if (Py_TYPE(got) != want.type) {
        return false;
      }
      const auto& t = THPVariable_Unpack(got);
      auto* impl = t.unsafeGetTensorImpl();
      const int64_t* dims = e.dims.data() + want.dims;
      const bool needs_grad = requires_grad(impl);
      if (impl->key_set() != want.keys || impl->dtype() != want.dtype || needs_grad != want.requires_grad ||
          (grad && needs_grad) || has_tangent(impl)) {
        return false;
      }
      tensors[i] = &t;
      e.met[i] = {impl, impl->unsafe_storage().unsafeGetStorageImpl()};
      if (want.given) {
        continue;
      }
      if (impl->sizes().size() != want.rank || !same(impl->sizes(), dims) || !same(impl->strides(), dims + want.rank) ||
          (want.placed && !placed_as_recorded(want, *impl))) {
        return false;
      }
      const char* p = address(t);
      if (want.home != nullptr && p != want.home) {
        return false;
      }
      moved = moved || p != e.last[i];
      e.last[i] = p;
    } else if (want.kind == ArgCheck::Int) {
      if (!PyLong_CheckExact(got) || (want.told ? !fits_64_bits(got) : PyLong_AsLong(got) != want.integer)) {
        PyErr_Clear();
        return false;
      }
      tensors[i] = nullptr;
    } else {
      tensors[i] = nullptr;
    }
  }
  e.checked = !moved || overlaps_as_recorded(e, tensors);
  return e.checked;
}

// A call gave other sizes or strides than at capture: Python runs the rest of the program from there.
PyObject* go_on_live(PyObject* diverged, const Entry& e, PyObject* const* args, size_t n, const Diverged& d) {
  pybind11::tuple given(n);
  for (size_t i = 0; i < n; ++i) {
    given[i] = pybind11::reinterpret_borrow<pybind11::object>(args[i]);
  }
  pybind11::list results;
  for (const auto& r : d.results) {
    results.append(torch::jit::toPyObject(r));
  }
  pybind11::dict values, boxed;
  for (const auto& [id, t] : d.values) {
    values[pybind11::int_(id)] = t;
  }
  for (const auto& [id, t] : d.boxed) {
    boxed[pybind11::int_(id)] = t;
  }
  const auto all = pybind11::make_tuple(e.id, given, d.position, d.op, d.what(), results, values, boxed);
  PyObject* done = PyObject_Call(diverged, all.ptr(), nullptr);
  if (done == nullptr) {
    python_error error;
    error.persist();
    throw error;
  }
  return done;
}

// `entry` is held by the caller: it may be dropped while the GIL is free.
PyObject* replay(State& state, const std::shared_ptr<Entry>& entry, PyObject* diverged, PyObject* const* args,
                 const at::Tensor* const* tensors, size_t n) {
  Entry& e = *entry;
  const auto& graph = e.graph;
  const c10::SmallVector<const char*, 64> first(e.last.begin(), e.last.end());
  c10::SmallVector<int64_t, 16> told;
  for (const size_t i : e.told) {
    told.push_back(PyLong_AsLong(args[i]));
  }
  std::vector<at::Tensor> results;
  try {
    pybind11::gil_scoped_release no_gil;
    results = graph->run(c10::ArrayRef<const at::Tensor*>(tensors, n), first.data(), told);
  } catch (const Diverged& d) {
    return go_on_live(diverged, e, args, n, d);
  } catch (const Forked& e) {
    const auto errors = pybind11::module_::import("graphmode.errors");
    PyErr_SetString(errors.attr("StateError").ptr(), e.what());
    python_error error;
    error.persist();
    throw error;
  } catch (const Moved&) {  // nothing ran yet: the next graph is captured on what there is now
    auto& all = state.entries;
    all.erase(std::remove(all.begin(), all.end(), entry), all.end());
    return nullptr;
  }
  if (state.leaves_grad >= 0) {
    c10::GradMode::set_enabled(state.leaves_grad != 0);
  }
  ++e.replays;
  ++state.count->replays;
  e.used = ++state.clock;
  THPObjectPtr out(PyTuple_New(static_cast<Py_ssize_t>(e.outputs.size())));
  if (!out) {
    throw python_error();
  }
  for (size_t i = 0; i < e.outputs.size(); ++i) {
    const auto& [index, constant] = e.outputs[i];
    PyObject* item = nullptr;
    if (index >= 0) {
      item = THPVariable_Wrap(results[index]);  // not moved: a tensor may be given twice
    } else {
      item = Py_NewRef(constant.get());
    }
    PyTuple_SET_ITEM(out.get(), static_cast<Py_ssize_t>(i), item);
  }
  return out.release();
}

PyObject* runner_call(PyObject* self, PyObject* const* args, size_t nargsf, PyObject* kwnames) {
  HANDLE_TH_ERRORS
  auto* r = reinterpret_cast<RunnerObject*>(self);
  if (kwnames == nullptr) {
    if (PyObject* result = runner_try(self, args, static_cast<size_t>(PyVectorcall_NARGS(nargsf)), current_mode())) {
      return result;
    }
  }
  return PyObject_Vectorcall(r->miss, args, nargsf, kwnames);
  END_HANDLE_TH_ERRORS
}

PyObject* runner_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  PyObject *miss = nullptr, *diverged = Py_None;
  if (!PyArg_ParseTuple(args, "O|O", &miss, &diverged)) {
    return nullptr;
  }
  auto* self = reinterpret_cast<RunnerObject*>(type->tp_alloc(type, 0));
  if (self != nullptr) {
    self->vectorcall = &runner_call;
    self->state = new State();
    self->miss = Py_NewRef(miss);
    self->diverged = Py_NewRef(diverged);
    self->dict = nullptr;
    self->weakrefs = nullptr;
  }
  return reinterpret_cast<PyObject*>(self);
}

int runner_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* r = reinterpret_cast<RunnerObject*>(self);
  Py_VISIT(r->miss);
  Py_VISIT(r->diverged);
  Py_VISIT(r->dict);
  for (const auto& e : r->state->entries) {
    for (const auto& [i, object] : e->objects) {
      Py_VISIT(object.get());
    }
  }
  return 0;
}

int runner_clear(PyObject* self) {
  auto* r = reinterpret_cast<RunnerObject*>(self);
  Py_CLEAR(r->miss);
  Py_CLEAR(r->diverged);
  Py_CLEAR(r->dict);
  const auto gone = std::move(r->state->entries);  // what they hold may call back when it dies
  r->state->entries.clear();
  return 0;
}

void runner_dealloc(PyObject* self) {
  auto* r = reinterpret_cast<RunnerObject*>(self);
  PyObject_GC_UnTrack(self);
  if (r->weakrefs != nullptr) {
    PyObject_ClearWeakRefs(self);
  }
  runner_clear(self);
  delete r->state;
  Py_TYPE(self)->tp_free(self);
}

// torch._dynamo's SerializableCallable, without which its ahead-of-time path takes no backend's result.
PyObject* no_artifacts(PyObject*, PyObject*) {
  HANDLE_TH_ERRORS
  const auto errors = pybind11::module_::import("graphmode.errors");
  PyErr_SetString(errors.attr("UnsupportedError").ptr(),
                  "graphs hold addresses of this process and are made anew in the next: nothing is written to a cache");
  return nullptr;
  END_HANDLE_TH_ERRORS
}

PyMethodDef runner_methods[] = {
    {"serialize_compile_artifacts", &no_artifacts, METH_O | METH_STATIC, "Raises UnsupportedError."},
    {"deserialize_compile_artifacts", &no_artifacts, METH_O | METH_STATIC, "Raises UnsupportedError."},
    {nullptr, nullptr, 0, nullptr},
};

PyMemberDef runner_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(RunnerObject, vectorcall), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(RunnerObject, dict), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RunnerObject, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyTypeObject runner_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

State& state_of(const pybind11::handle& runner) {
  if (Py_TYPE(runner.ptr()) != &runner_type) {
    throw pybind11::type_error("expected a graphmode Runner");
  }
  return *reinterpret_cast<RunnerObject*>(runner.ptr())->state;
}

ArgCheck check_of(PyObject* arg, size_t index, const Replayable& graph, std::vector<int64_t>& dims) {
  ArgCheck a;
  if (THPVariable_Check(arg)) {
    const auto& t = THPVariable_Unpack(arg);
    a.kind = ArgCheck::Tensor;
    a.type = Py_TYPE(arg);
    a.requires_grad = t.requires_grad();
    a.keys = t.unsafeGetTensorImpl()->key_set();
    a.dtype = t.dtype();
    a.rank = static_cast<uint32_t>(t.dim());
    a.dims = static_cast<uint32_t>(dims.size());
    dims.insert(dims.end(), t.sizes().begin(), t.sizes().end());
    dims.insert(dims.end(), t.strides().begin(), t.strides().end());
    const auto use = graph.use(index, t);
    a.given = use.given;
    a.written = use.written;
    a.alias_of = use.alias_of;
    a.lo = use.lo;
    a.hi = use.hi;
    a.absolute = use.absolute;
    a.align = use.align;
    a.placed = a.absolute || a.align > static_cast<int64_t>(t.itemsize());
    a.storage_offset = use.offset;
    a.needs = use.needs;
    a.home = use.home;
  } else if (PyLong_CheckExact(arg)) {
    a.kind = ArgCheck::Int;
    a.integer = PyLong_AsLong(arg);
    a.told = graph.is_told(index);
  } else {
    a.type = Py_TYPE(arg);
    a.object = arg;
    a.by_value = pybind11::module_::import("torch._library.opaque_object")
                     .attr("is_opaque_value_type")(pybind11::handle(reinterpret_cast<PyObject*>(a.type)))
                     .cast<bool>();
  }
  return a;
}

}  // namespace

bool is_runner(PyObject* object) {
  return Py_TYPE(object) == &runner_type;
}

PyObject* runner_try(PyObject* runner, PyObject* const* args, size_t n, const Mode& mode) {
  auto* self = reinterpret_cast<RunnerObject*>(runner);
  auto& state = *self->state;
  auto& entries = state.entries;
  // Another capture records the calls one by one; a Python dispatch mode sees them one by one.
  if (entries.empty() || recording() != nullptr || c10::impl::dispatch_mode_enabled()) {
    return nullptr;
  }
  c10::SmallVector<const at::Tensor*, 64> tensors(n);
  const bool grad = state.enables_grad || c10::GradMode::is_enabled();
  fetch_ahead(*entries.front(), args, n);  // the others have the same weights
  for (size_t i = 0; i < entries.size(); ++i) {
    const std::shared_ptr<Entry> entry = entries[i];  // comparing objects may run Python, and that anything
    if (matches(*entry, args, n, mode, grad, tensors.data()) && entry->graph->fits({tensors.data(), n})) {
      if (i > 0 && i < entries.size() && entries[i] == entry) {
        const auto it = entries.begin() + static_cast<std::ptrdiff_t>(i);
        std::rotate(entries.begin(), it, it + 1);
      }
      return replay(state, entry, self->diverged, args, tensors.data(), n);
    }
  }
  return nullptr;
}

void bind_runner(pybind11::module_& m) {
  runner_type.tp_name = "graphmode._C.Runner";
  runner_type.tp_basicsize = sizeof(RunnerObject);
  runner_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
  runner_type.tp_doc = "Runner(miss): checks the arguments natively and replays, or calls miss(*args).";
  runner_type.tp_new = &runner_new;
  runner_type.tp_dealloc = &runner_dealloc;
  runner_type.tp_traverse = &runner_traverse;
  runner_type.tp_clear = &runner_clear;
  runner_type.tp_call = &PyVectorcall_Call;
  runner_type.tp_members = runner_members;
  runner_type.tp_vectorcall_offset = offsetof(RunnerObject, vectorcall);
  runner_type.tp_dictoffset = offsetof(RunnerObject, dict);
  runner_type.tp_weaklistoffset = offsetof(RunnerObject, weakrefs);
  runner_type.tp_methods = runner_methods;
  runner_type.tp_getattro = &PyObject_GenericGetAttr;
  runner_type.tp_setattro = &PyObject_GenericSetAttr;
  if (PyType_Ready(&runner_type) < 0) {
    throw pybind11::error_already_set();
  }
  m.add_object("Runner", pybind11::handle(reinterpret_cast<PyObject*>(&runner_type)));

  m.def(
      "runner_add",
      [](const pybind11::object& runner, const pybind11::tuple& args, const std::shared_ptr<Replayable>& graph,
         const std::vector<std::pair<int, pybind11::object>>& outputs) {
        auto& state = state_of(runner);
        auto e = std::make_shared<Entry>();
        e->id = state.next_id++;
        e->mode = current_mode();
        e->graph = graph;
        for (size_t i = 0; i < args.size(); ++i) {
          e->args.push_back(check_of(args[i].ptr(), i, *graph, e->dims));
          e->any_written = e->any_written || e->args.back().written;
          if (e->args.back().kind == ArgCheck::Object) {
            e->objects.emplace_back(i, THPObjectPtr(Py_NewRef(args[i].ptr())));
          }
          if (e->args.back().told) {
            e->told.push_back(i);
          }
        }
        for (auto& a : e->args) {
          if (a.alias_of >= 0) {
            const auto i = static_cast<size_t>(&a - e->args.data());
            a.alias_distance = address(THPVariable_Unpack(args[i].ptr())) -
                               address(THPVariable_Unpack(args[static_cast<size_t>(a.alias_of)].ptr()));
          }
        }
        e->last.assign(e->args.size(), nullptr);
        for (const auto& [index, constant] : outputs) {
          e->outputs.emplace_back(index, THPObjectPtr(Py_NewRef(constant.ptr())));
        }
        e->used = ++state.clock;
        const auto id = e->id;
        state.entries.insert(state.entries.begin(), std::move(e));
        return id;
      },
      "Adds a graph for arguments like these; returns its id.");
  m.def(
      "runner_replay",
      [](const pybind11::object& runner, int64_t id, const pybind11::tuple& args) {
        auto& state = state_of(runner);
        const auto is_it = [id](const std::shared_ptr<Entry>& e) { return e->id == id; };
        const auto it = std::find_if(state.entries.begin(), state.entries.end(), is_it);
        if (it == state.entries.end()) {
          return pybind11::object(pybind11::none());
        }
        const std::shared_ptr<Entry> entry = *it;
        c10::SmallVector<const at::Tensor*, 64> tensors;
        c10::SmallVector<PyObject*, 64> given;
        entry->checked = false;
        for (const auto& a : args) {
          const bool is_tensor = THPVariable_Check(a.ptr());
          given.push_back(a.ptr());
          tensors.push_back(is_tensor ? &THPVariable_Unpack(a.ptr()) : nullptr);
          entry->last[given.size() - 1] = is_tensor ? address(*tensors.back()) : nullptr;
        }
        PyObject* results = replay(state, entry, Py_None, given.data(), tensors.data(), given.size());
        return results == nullptr ? pybind11::none() : pybind11::reinterpret_steal<pybind11::object>(results);
      },
      "Replays a graph on arguments that its caller knows to fit; None where another thread dropped it meanwhile.");
  m.def(
      "runner_modes",
      [](const pybind11::object& runner, bool enables_grad, int leaves_grad) {
        state_of(runner).enables_grad = enables_grad;
        state_of(runner).leaves_grad = static_cast<int8_t>(leaves_grad);
      },
      "What the program does to the grad mode: whether it switches it on, and what it leaves set (-1: nothing).");
  m.def("runner_drop", [](const pybind11::object& runner, int64_t id) {
    auto& entries = state_of(runner).entries;
    for (auto it = entries.begin(); it != entries.end(); ++it) {
      if ((*it)->id == id) {
        const auto gone = std::move(*it);  // dies when the list is whole again: what it holds may call back
        entries.erase(it);
        return true;
      }
    }
    return false;
  });
  m.def(
      "runner_entries",
      [](const pybind11::object& runner) {
        std::vector<std::tuple<int64_t, uint64_t, uint64_t>> rows;
        for (auto& e : state_of(runner).entries) {
          rows.emplace_back(e->id, e->replays, e->used);
        }
        return rows;
      },
      "(id, replays, time of last use) of each graph, most recently used first.");
  m.def("has_tangent", [](const at::Tensor& t) { return has_tangent(t.unsafeGetTensorImpl()); });
  pybind11::class_<ReplayCount, std::shared_ptr<ReplayCount>>(m, "ReplayCount")
      .def_readwrite("replays", &ReplayCount::replays);
  m.def("runner_count", [](const pybind11::object& runner) { return state_of(runner).count; });
}

}  // namespace graphmode
