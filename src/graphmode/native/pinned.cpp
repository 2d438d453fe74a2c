// Copies in, the replay, copies out. Which inputs are copied and when a graph is stale is the region's policy.
#include "pinned.h"

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

namespace graphmode {

namespace {

namespace py = pybind11;

constexpr int kGarbage = 0xA5;

at::Tensor bytes_of(const c10::Storage& storage, int64_t begin, int64_t size, c10::Device device) {
  auto t = at::empty({0}, at::TensorOptions().dtype(at::kByte).device(device));
  return t.set_(storage, begin, {size}, {1});
}

int64_t begin_of(const at::Tensor& t) {
  return t.storage_offset() * static_cast<int64_t>(t.itemsize());
}

int64_t extent_of(const at::Tensor& t) {
  int64_t last = t.numel() == 0 ? -1 : 0;
  for (int64_t d = 0; t.numel() != 0 && d < t.dim(); ++d) {
    last += (t.size(d) - 1) * t.stride(d);
  }
  return (last + 1) * static_cast<int64_t>(t.itemsize());
}

const c10::StorageImpl* storage_of(const at::Tensor& t) {
  return t.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

Layout layout_of(const at::Tensor& t) {
  return {t.sizes().vec(), t.strides().vec(), t.storage_offset(), t.dtype(), t.is_conj(), t.is_neg()};
}

// A tensor over other memory, `moved` bytes further on in its storage.
at::Tensor over(const Layout& like, const c10::Storage& storage, int64_t moved, c10::Device device) {
  auto t = at::empty({0}, at::TensorOptions().dtype(like.dtype).device(device));
  t.set_(storage, like.offset + moved / static_cast<int64_t>(like.dtype.itemsize()), like.sizes, like.strides);
  t = like.conj ? at::conj(t) : t;
  return like.neg ? at::_neg_view(t) : t;
}

using Inputs = std::vector<std::optional<at::Tensor>>;

std::vector<at::Tensor> tensors_of(const Inputs& inputs) {
  std::vector<at::Tensor> tensors;
  for (const auto& t : inputs) {
    tensors.push_back(t.value_or(at::Tensor()));
  }
  return tensors;
}

template <class F>
std::vector<at::Tensor> with(const Inputs& inputs, const F& f) {
  const auto tensors = tensors_of(inputs);
  std::vector<const at::Tensor*> pointers;
  for (const auto& t : tensors) {
    pointers.push_back(&t);
  }
  const py::gil_scoped_release no_gil;
  return f(c10::ArrayRef<const at::Tensor*>(pointers));
}

// The block goes back to its allocator; the tensors over it stay what they were, and own nothing.
void let_go(const at::Tensor& t) {
  auto* storage = t.storage().unsafeGetStorageImpl();
  const at::DataPtr gone = storage->set_data_ptr(at::DataPtr(storage->mutable_data(), storage->device()));
}

}  // namespace

PinnedGraph::PinnedGraph(py::object launch, py::object busy, std::shared_ptr<Turn> turn,
                         std::vector<at::Tensor> stand_ins, std::vector<Span> spans, const std::vector<int>& written,
                         std::vector<int> told, std::vector<at::Tensor> results,
                         const std::vector<at::Tensor>& constants, bool placed, bool fresh, bool poison)
    : launch_(std::move(launch)),
      busy_(std::move(busy)),
      turn_(std::move(turn)),
      spans_(std::move(spans)),
      uses_(stand_ins.size()),
      told_(std::move(told)),
      fresh_(fresh),
      poison_(poison) {
  std::unordered_map<const c10::StorageImpl*, int> owners;  // by storage, the first input in it
  std::unordered_map<const at::TensorImpl*, int> themselves;
  for (size_t i = 0; i < stand_ins.size(); ++i) {
    const auto& t = stand_ins[i];
    if (!t.defined()) {
      uses_[i].given = true;  // a tensor that stands here is not used
      continue;
    }
    auto& use = uses_[i];
    const int position = static_cast<int>(i);
    const auto owner = owners.emplace(storage_of(t), position).first->second;
    themselves.emplace(t.unsafeGetTensorImpl(), position);
    use.alias_of = owner == position ? -1 : owner;
    use.lo = placed ? -begin_of(t) : 0;  // the program may look at all of the storage
    use.hi = placed ? static_cast<int64_t>(storage_of(t)->nbytes()) - begin_of(t) : extent_of(t);
    use.absolute = placed;
    use.offset = t.storage_offset();
    use.needs = placed ? static_cast<int64_t>(storage_of(t)->nbytes()) : 0;
    use.home = static_cast<const char*>(storage_of(t)->data()) + begin_of(t);
    device_ = device_ < 0 ? t.device().index() : device_;
  }
  for (const int i : written) {
    if (stand_ins[i].defined()) {
      uses_[i].written = true;
      written_.push_back(i);
    }
  }
  for (auto& span : spans_) {
    bool bytewise = placed;
    for (const int i : span.positions) {
      uses_[i].home = nullptr;
      if (uses_[i].written) {
        span.written = true;
        span.back.emplace_back(i, stand_ins[i]);
        bytewise = bytewise || at::has_internal_overlap(stand_ins[i]) == at::MemOverlap::Yes;
      }
    }
    if (bytewise) {
      span.back.clear();
    }
    const auto& t = stand_ins[span.positions[0]];
    if (span.positions.size() == 1 && span.bytes == extent_of(t) && t.is_non_overlapping_and_dense()) {
      span.whole = t;
    }
  }
  std::unordered_map<const c10::StorageImpl*, size_t> own;
  for (auto& t : results) {
    PinnedResult r;
    const auto* storage = storage_of(t);
    const auto itself = themselves.find(t.unsafeGetTensorImpl());
    const auto owner = owners.find(storage);
    const auto is_of = [&](const at::Tensor& c) { return storage_of(c) == storage; };
    if (itself != themselves.end()) {
      r.kind = PinnedResult::Same;
      r.position = itself->second;
    } else if (owner != owners.end()) {
      r.kind = PinnedResult::View;
      r.position = owner->second;
      r.from = begin_of(t) - begin_of(stand_ins[owner->second]);
      r.layout = layout_of(t);
    } else if (std::any_of(constants.begin(), constants.end(), is_of)) {
      r.kind = PinnedResult::Constant;
      r.tensor = t;
    } else {
      const auto [at, is_new] = own.emplace(storage, own_.size());
      if (is_new) {
        own_.push_back({bytes_of(t.storage(), 0, static_cast<int64_t>(storage->nbytes()), t.device()), -1});
      }
      r.own = at->second;
      r.inference = t.is_inference();
      r.layout = layout_of(t);
      r.tensor = std::move(t);
      device_ = device_ < 0 ? r.tensor.device().index() : device_;
    }
    results_.push_back(std::move(r));
  }
  for (size_t i = 0; i < results_.size(); ++i) {
    const auto& r = results_[i];
    if (r.kind == PinnedResult::Own && own_[r.own].base < 0 && holds_all(r)) {
      own_[r.own].base = static_cast<int>(i);
    }
  }
}

// Whether all results of one memory lie in this one, so that a copy of it is a copy of all.
bool PinnedGraph::holds_all(const PinnedResult& r) const {
  const auto& l = r.layout;
  const auto end = extent_of(r.tensor);
  const auto lies_in = [&](const PinnedResult& other) {
    return other.kind != PinnedResult::Own || other.own != r.own ||
           begin_of(other.tensor) + extent_of(other.tensor) <= end;
  };
  return l.offset == 0 && !l.conj && !l.neg && r.tensor.is_non_overlapping_and_dense() &&
         std::all_of(results_.begin(), results_.end(), lies_in);
}

PinnedGraph::~PinnedGraph() {
  const py::gil_scoped_acquire gil;
  launch_ = py::object();
  busy_ = py::object();
}

void PinnedGraph::disown() {
  for (const auto& span : spans_) {
    let_go(span.memory);
  }
  for (const auto& memory : own_) {
    let_go(memory.bytes);
  }
}

InputUse PinnedGraph::use(size_t index, const at::Tensor&) const {
  return uses_[index];
}

bool PinnedGraph::is_told(size_t index) const {
  return std::find(told_.begin(), told_.end(), static_cast<int>(index)) != told_.end();
}

bool PinnedGraph::fits(at::ArrayRef<const at::Tensor*> inputs) {
  // Where several lie in one copy, the bytes between them are theirs only if they lie in one storage.
  const auto apart = [&](const Span& span) {
    const auto elsewhere = [&](int i) { return storage_of(*inputs[i]) != storage_of(*inputs[span.positions[0]]); };
    return std::any_of(span.positions.begin(), span.positions.end(), elsewhere);
  };
  return std::none_of(spans_.begin(), spans_.end(), apart) && !busy_().cast<bool>();
}

void PinnedGraph::fill(at::ArrayRef<const at::Tensor*> inputs) {
  for (const auto& span : spans_) {
    const auto& t = *inputs[span.positions[0]];
    if (span.whole.defined()) {
      span.whole.copy_(t, /*non_blocking=*/true);
    } else {
      span.memory.copy_(bytes_of(t.storage(), begin_of(t) + span.from, span.bytes, t.device()), /*non_blocking=*/true);
    }
  }
}

void PinnedGraph::launch(at::IntArrayRef told) {
  const py::gil_scoped_acquire gil;
  py::tuple integers(told.size());
  for (size_t i = 0; i < told.size(); ++i) {
    integers[i] = told[i];
  }
  PyObject* done = PyObject_CallObject(launch_.ptr(), integers.ptr());
  if (done == nullptr) {
    python_error error;
    error.persist();
    throw error;
  }
  Py_DECREF(done);
}

std::vector<at::Tensor> PinnedGraph::run(at::ArrayRef<const at::Tensor*> inputs, const char* const*,
                                         at::IntArrayRef told) {
  c10::OptionalDeviceGuard guard;
  if (turn_ != nullptr && device_ >= 0) {
    guard.reset_device(c10::Device(turn_->type(), device_));
  }
  const InTurn mine(turn_.get(), device_);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    fill(inputs);
    for (const auto& memory : own_) {
      if (poison_) {
        memory.bytes.fill_(kGarbage);
      }
    }
  }
  launch(told);
  return hand_out(inputs);
}

std::vector<at::Tensor> PinnedGraph::hand_out(at::ArrayRef<const at::Tensor*> inputs) {
  std::vector<at::Tensor> results(results_.size());
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    for (const auto& span : spans_) {
      const auto& t = *inputs[span.positions[0]];
      for (const auto& [i, stand_in] : span.back) {
        inputs[i]->copy_(stand_in, /*non_blocking=*/true);
      }
      if (span.written && span.back.empty()) {
        bytes_of(t.storage(), begin_of(t) + span.from, span.bytes, t.device())
            .copy_(span.memory, /*non_blocking=*/true);
      }
    }
  }
  hand_out_own(results);
  for (const int i : written_) {
    if (!inputs[i]->is_inference()) {  // saves for a backward pass notice
      inputs[i]->unsafeGetTensorImpl()->bump_version();
    }
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& r = results_[i];
    if (r.kind == PinnedResult::Same) {
      results[i] = *inputs[r.position];
    } else if (r.kind == PinnedResult::Constant) {
      results[i] = r.tensor;
    } else if (r.kind == PinnedResult::View) {
      const auto& base = *inputs[r.position];
      const auto at = begin_of(base) + r.from;
      const auto& l = r.layout;
      const auto item = static_cast<int64_t>(l.dtype.itemsize());
      TORCH_CHECK(at % item == 0, "a view as a larger dtype: the input's offset of ", at, " bytes is no multiple of ",
                  item);
      if (l.dtype == base.dtype() && l.conj == base.is_conj() && l.neg == base.is_neg()) {
        results[i] = base.as_strided(l.sizes, l.strides, at / item);
      } else {
        results[i] = over(l, base.storage(), at - l.offset * item, base.device());
      }
    }
  }
  return results;
}

// Copies, which stand to one another as eager's results would: those of one memory share it, and are views of the one
// that holds it all, or of what is no result.
void PinnedGraph::hand_out_own(std::vector<at::Tensor>& results) const {
  std::vector<at::Tensor> bases(own_.size());
  const bool inference = c10::InferenceMode::is_enabled();
  std::optional<c10::InferenceMode> mode;
  const auto set_mode = [&](const PinnedResult& r) {
    if (r.inference != inference) {
      mode.emplace(r.inference);
    }
  };
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& r = results_[i];
    if (r.kind == PinnedResult::Own && own_[r.own].base == static_cast<int>(i)) {
      set_mode(r);
      const at::AutoDispatchBelowADInplaceOrView below;
      results[i] = bases[r.own] = fresh_ ? r.tensor : r.tensor.clone();
    }
    mode.reset();
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& r = results_[i];
    if (r.kind != PinnedResult::Own || own_[r.own].base == static_cast<int>(i)) {
      continue;
    }
    set_mode(r);
    auto& base = bases[r.own];
    const auto& l = r.layout;
    if (!base.defined()) {
      const at::AutoDispatchBelowADInplaceOrView below;
      const auto& bytes = own_[r.own].bytes;
      const auto copy = fresh_ ? bytes : bytes.clone();
      Layout flat{{bytes.numel() / static_cast<int64_t>(l.dtype.itemsize())}, {1}, 0, l.dtype, false, false};
      base = over(flat, copy.storage(), 0, copy.device());
    }
    if (l.dtype == base.dtype() && !l.conj && !l.neg) {
      results[i] = base.as_strided(l.sizes, l.strides, l.offset);
    } else {
      results[i] = over(l, base.storage(), 0, base.device());
      if (!results[i].is_inference() && !base.is_inference()) {
        results[i].unsafeGetTensorImpl()->set_version_counter(base.unsafeGetTensorImpl()->version_counter());
      }
    }
    mode.reset();
  }
}

void bind_pinned(py::module_& m) {
  py::class_<Turn, std::shared_ptr<Turn>>(m, "Turn")
      .def(py::init([](const std::string& type) { return std::make_shared<Turn>(c10::Device(type).type()); }))
      .def("take", &Turn::take, py::arg("index") = -1)
      .def("synchronize", &Turn::synchronize, py::arg("index") = -1, py::call_guard<py::gil_scoped_release>())
      .def("leave", &Turn::leave);
  using Part = std::tuple<std::vector<int>, int64_t, int64_t, at::Tensor>;
  py::class_<PinnedGraph, Replayable, std::shared_ptr<PinnedGraph>>(m, "PinnedGraph")
      .def(py::init([](py::object launch, py::object busy, std::shared_ptr<Turn> turn, const Inputs& stand_ins,
                       const std::vector<Part>& spans, const std::vector<int>& written, std::vector<int> told,
                       std::vector<at::Tensor> results, const std::vector<at::Tensor>& constants, bool placed,
                       bool fresh, bool poison) {
             std::vector<Span> parts;
             for (const auto& [positions, from, bytes, memory] : spans) {
               parts.push_back({positions, from, bytes, memory, {}, false, {}});
             }
             return std::make_shared<PinnedGraph>(std::move(launch), std::move(busy), std::move(turn),
                                                  tensors_of(stand_ins), std::move(parts), written, std::move(told),
                                                  std::move(results), constants, placed, fresh, poison);
           }),
           py::arg("launch"), py::arg("busy"), py::arg("turn"), py::arg("stand_ins"), py::arg("spans"),
           py::arg("written"), py::arg("told"), py::arg("results"), py::arg("constants"), py::arg("placed"),
           py::arg("fresh"), py::arg("poison"),
           "spans: (positions, bytes from the first one's first element to the begin, bytes, the copy as uint8).")
      .def("disown", &PinnedGraph::disown)
      .def("run",
           [](PinnedGraph& g, const Inputs& inputs, const std::vector<int64_t>& told) {
             return with(inputs, [&](auto all) { return g.run(all, nullptr, told); });
           })
      .def("hand_out", [](PinnedGraph& g, const Inputs& inputs) {
        return with(inputs, [&](auto all) { return g.hand_out(all); });
      });
  m.def("expandable_segments",
        [] { return c10::CachingAllocator::AcceleratorAllocatorConfig::use_expandable_segments(); });
}

}  // namespace graphmode
