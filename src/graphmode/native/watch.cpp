#include "watch.h"

#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <string>

namespace graphmode {

namespace {

#if PY_VERSION_HEX < 0x030C0000
constexpr bool kDictTags = true;

// Changes whenever an entry of the dict is set or deleted, and is unique over all dicts.
uint64_t dict_tag(PyObject* dict) {
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
}
#else
// Python 3.12 stopped to keep dicts' versions: compile() leaves Dynamo's guards in place.
constexpr bool kDictTags = false;

uint64_t dict_tag(PyObject*) {
  return 0;
}
#endif

// Changes whenever an attribute of the type or of one of its bases is set; 0 where Python has none to give.
unsigned int type_tag(PyTypeObject* type) {
  return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? type->tp_version_tag : 0;
}

unsigned int make_type_tag(PyTypeObject* type) {
  // A look-up makes Python give the type a tag.
  const THPObjectPtr any(PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__init__"));
  PyErr_Clear();
  return type_tag(type);
}

// Entries by identity. copy and pickle leave a note of their own in a class.
bool same_contents(PyObject* now, PyObject* before) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t at = 0, seen = 0;
  while (PyDict_Next(now, &at, &key, &value)) {
    PyObject* had = PyDict_GetItem(before, key);
    seen += had != nullptr;
    if (had != value && PyUnicode_CompareWithASCIIString(key, "__slotnames__") != 0) {
      return false;
    }
  }
  return seen == PyDict_GET_SIZE(before);
}

// Null while the constructor still runs, which the garbage collector may interrupt.
Watch* made(PyObject* self) {
  auto held = reinterpret_cast<pybind11::detail::instance*>(self)->get_value_and_holder();
  return held.holder_constructed() ? held.value_ptr<Watch>() : nullptr;
}

// A list or tuple, and a tuple.
bool same_items(PyObject* now, PyObject* items) {
  const Py_ssize_t n = PyTuple_GET_SIZE(items);
  return PySequence_Fast_GET_SIZE(now) == n &&
         std::equal(PySequence_Fast_ITEMS(items), PySequence_Fast_ITEMS(items) + n, PySequence_Fast_ITEMS(now));
}

THPObjectPtr own(const pybind11::handle& h) {
  return THPObjectPtr(Py_NewRef(h.ptr()));
}

}  // namespace

Watch::Watch(const pybind11::list& entries) {
  for (const auto& item : entries) {
    const auto e = item.cast<pybind11::tuple>();
    const auto kind = e[0].cast<std::string>();
    if (kind == "object") {
      add_object(e[1].ptr());
    } else if (kind == "dict") {
      TORCH_CHECK_TYPE(PyDict_Check(e[1].ptr()), "a dict");
      dicts_.emplace_back();
      dicts_.back().dict = own(e[1]);
      dicts_.back().tag = dict_tag(e[1].ptr());
    } else if (kind == "items") {
      TORCH_CHECK_TYPE(PyList_Check(e[1].ptr()), "a list");
      lists_.push_back({own(e[1]), THPObjectPtr(PyList_AsTuple(e[1].ptr()))});
    } else if (kind == "keys") {
      orders_.push_back({own(e[1]), THPObjectPtr(PySequence_Tuple(e[1].ptr()))});
    } else if (kind == "entry") {
      entries_.push_back({own(e[1]), own(e[2]), own(e[3])});
    } else if (kind == "attribute") {
      attributes_.push_back({own(e[1]), own(e[2]), own(e[3])});
    } else {
      types_.emplace_back(reinterpret_cast<PyTypeObject*>(e[1].ptr()));
    }
  }
}

Watch::Type::Type(PyTypeObject* t)
    : type(Py_NewRef(reinterpret_cast<PyObject*>(t))), mro(Py_NewRef(t->tp_mro)), tag(make_type_tag(t)) {
  TORCH_CHECK_VALUE(tag != 0, t->tp_name, " has no version");
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(t->tp_mro); ++i) {
    auto* base = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(t->tp_mro, i));
    if (PyType_HasFeature(base, Py_TPFLAGS_HEAPTYPE)) {
      contents.emplace_back(base, PyDict_Copy(base->tp_dict));
    }
  }
}

bool Watch::Type::unchanged() const {
  auto* t = reinterpret_cast<PyTypeObject*>(get(type));
  if (type_tag(t) == tag) {
    return true;
  }
  const bool same = t->tp_mro == get(mro) && std::all_of(contents.begin(), contents.end(), [](const auto& c) {
                      return same_contents(c.first->tp_dict, get(c.second));
                    });
  tag = same ? make_type_tag(t) : tag;
  return same;
}

void Watch::add_object(PyObject* object) {
  const pybind11::handle h(object);
  PyObject** slot = _PyObject_GetDictPtr(object);
  if (slot == nullptr) {
    bare_.emplace_back(own(h), Py_TYPE(object));
    return;
  }
  const THPObjectPtr dict(PyObject_GenericGetDict(object, nullptr));  // makes one where there is none yet
  if (!dict) {
    throw python_error();
  }
  Dict d;
  d.owner = own(h);
  d.dict = THPObjectPtr(Py_NewRef(get(dict)));
  d.tag = dict_tag(get(dict));
  d.slot = slot;
  d.type = Py_TYPE(object);
  dicts_.push_back(std::move(d));
}

bool Watch::unchanged() const {
  for (const auto& t : types_) {
    if (!t.unchanged()) {
      return false;
    }
  }
  for (const auto& d : dicts_) {
    if (dict_tag(get(d.dict)) != d.tag ||
        (d.slot != nullptr && (*d.slot != get(d.dict) || Py_TYPE(get(d.owner)) != d.type))) {
      return false;
    }
  }
  for (const auto& [object, type] : bare_) {
    if (Py_TYPE(get(object)) != type) {
      return false;
    }
  }
  for (const auto& l : lists_) {
    if (!same_items(get(l.list), get(l.items))) {
      return false;
    }
  }
  for (const auto& o : orders_) {
    const THPObjectPtr now(PySequence_Tuple(get(o.list)));
    if (!now || !same_items(get(now), get(o.items))) {
      PyErr_Clear();
      return false;
    }
  }
  for (const auto& e : entries_) {
    if (PyDict_GetItem(get(e.owner), get(e.name)) != get(e.value)) {
      return false;
    }
  }
  for (const auto& a : attributes_) {
    const THPObjectPtr now(PyObject_GetAttr(get(a.owner), get(a.name)));
    if (get(now) != get(a.value)) {
      PyErr_Clear();
      return false;
    }
  }
  return true;
}

int Watch::traverse(visitproc visit, void* arg) const {
  for (const auto& d : dicts_) {
    Py_VISIT(get(d.dict));
    Py_VISIT(get(d.owner));
  }
  for (const auto& [object, type] : bare_) {
    Py_VISIT(get(object));
  }
  for (const auto* lists : {&lists_, &orders_}) {
    for (const auto& l : *lists) {
      Py_VISIT(get(l.list));
      Py_VISIT(get(l.items));
    }
  }
  for (const auto* values : {&entries_, &attributes_}) {
    for (const auto& v : *values) {
      Py_VISIT(get(v.owner));
      Py_VISIT(get(v.name));
      Py_VISIT(get(v.value));
    }
  }
  for (const auto& t : types_) {
    Py_VISIT(get(t.type));
    Py_VISIT(get(t.mro));
    for (const auto& [base, contents] : t.contents) {
      Py_VISIT(get(contents));
    }
  }
  return 0;
}

void bind_watch(pybind11::module_& m) {
  m.attr("DICT_TAGS") = kDictTags;
  // What it looks at may lead back to who holds it: the garbage collector has to see that.
  const pybind11::custom_type_setup collected([](PyHeapTypeObject* heap) {
    auto* type = &heap->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      const Watch* watch = made(self);
      return watch == nullptr ? 0 : watch->traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
      if (Watch* watch = made(self)) {
        const Watch gone = std::move(*watch);
      }
      return 0;
    };
  });
  pybind11::class_<Watch>(m, "Watch", collected)
      .def(pybind11::init<const pybind11::list&>())
      .def("unchanged", &Watch::unchanged);
}

}  // namespace graphmode
