// Python bindings: capture, executable, planner, arena. Types are declared in ../_C.pyi.
#include <ATen/CPUGeneratorImpl.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>  // says whether this is glibc
#include <sstream>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "executable.h"
#include "fast_call.h"
#include "mode.h"
#include "other_threads.h"
#include "pinned.h"
#include "places.h"
#include "prove.h"
#include "recorder.h"
#include "runner.h"
#include "script.h"
#include "watch.h"

namespace graphmode {

void register_held();
void register_extra_held();

namespace py = pybind11;

namespace {

// A capture under way, then its tape.
class Capture {
 public:
  Capture() : tape_(std::make_shared<Tape>()) {}

  // One entry per argument of the program; nothing where it is no tensor.
  // `constants`: the only other tensors the program may use; none given means any.
  // `given`: positions of tensors that custom ops take as each call gives them.
  void begin(const std::vector<std::optional<at::Tensor>>& arguments, std::function<std::string()> locate,
             const std::optional<std::vector<at::Tensor>>& constants, const std::vector<int>& given) {
    TORCH_CHECK(recording() == nullptr, "a capture is already open on this thread");
    std::vector<at::Tensor> inputs;
    for (const auto& t : arguments) {
      inputs.push_back(t.value_or(at::Tensor()));
    }
    declare_inputs(*tape_, inputs, given);
    if (!constants) {
      others_.emplace();
      generators_.push_back(at::detail::getDefaultCPUGenerator());
      for (const auto& g : generators_) {
        tape_->drawn.push_back({g, state_of(g)});
      }
    } else {
      tape_->constants.emplace();
      for (const auto& t : *constants) {
        if (t.has_storage()) {
          tape_->constants->insert(t.storage().unsafeGetStorageImpl());
        }
      }
    }
    for (const auto& t : inputs) {
      impls_.push_back(t.unsafeGetTensorImpl());
    }
    tape_->locate = std::move(locate);
    record_begin(tape_);
  }

  void end() {
    if (recording() == tape_.get()) {
      record_end();
    }
    others_.reset();
    tape_->locate = nullptr;
  }

  // A generator that the block may draw from, besides the default one.
  void generator(const at::Generator& g) {
    generators_.push_back(g);
  }

  // The program's node that runs next, and the op it calls.
  void at(int position, std::string op) {
    tape_->position = position;
    tape_->position_op = std::move(op);
  }

  // Where the graph has a tensor of the program: which kind of place, and its number there.
  std::optional<std::pair<std::string, int>> find(const at::Tensor& t) {
    auto* impl = t.unsafeGetTensorImpl();
    auto same = std::find(impls_.begin(), impls_.end(), impl);
    if (same != impls_.end()) {
      return std::make_pair("input", static_cast<int>(same - impls_.begin()));
    }
    auto it = tape_->boxed_by_impl.find(impl);
    if (it != tape_->boxed_by_impl.end()) {
      return std::make_pair("boxed", it->second);
    }
    if (!is_plain(t)) {
      return std::nullopt;
    }
    auto buffer = tape_->by_storage.find(t.storage().unsafeGetStorageImpl());
    if (buffer == tape_->by_storage.end()) {
      return std::nullopt;
    }
    return std::make_pair("value", tape_->value_of(t, tape_->buffers[buffer->second].last, BufferKind::Temp));
  }

  // The program's results become outputs: fresh memory at each replay.
  std::vector<int> outputs(const std::vector<at::Tensor>& tensors) {
    std::vector<int> indices;
    for (const auto& t : tensors) {
      OutputRef ref;
      auto same = std::find(impls_.begin(), impls_.end(), t.unsafeGetTensorImpl());
      if (same != impls_.end()) {
        ref.same_as_input = static_cast<int>(same - impls_.begin());
      } else if (is_plain(t)) {
        ref.value = tape_->value_of(t, static_cast<int>(tape_->nodes.size()), BufferKind::Fixed);
        ref.inference = t.is_inference();
        ref.view = t.is_view();
      } else {
        auto it = tape_->boxed_by_impl.find(t.unsafeGetTensorImpl());
        if (it == tape_->boxed_by_impl.end()) {
          tape_->refuse("an output is no plain tensor and no recorded call made it");
        } else {
          ref.boxed = it->second;
        }
      }
      indices.push_back(static_cast<int>(outputs_.size()));
      outputs_.push_back(ref);
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (outputs_[i].view) {
        find_base(tensors, i);
      }
    }
    return indices;
  }

  // What an output is a view of, where another output shows it: an update of one must reach the other's gradient.
  void find_base(const std::vector<at::Tensor>& tensors, size_t i) {
    auto& out = outputs_[i];
    const int buffer = tape_->values[out.value].buffer;
    if (tape_->buffers[buffer].kind != BufferKind::Temp) {
      return;
    }
    const at::Tensor base(tensors[i]._base());
    bool others = false;
    for (size_t j = 0; j < tensors.size(); ++j) {
      if (tensors[j].is_same(base)) {
        out.base = static_cast<int>(j);
        return;
      }
      others = others || (j != i && outputs_[j].value >= 0 && tape_->values[outputs_[j].value].buffer == buffer);
    }
    if (others && is_plain(base)) {
      out.hidden = tape_->value_of(base, static_cast<int>(tape_->nodes.size()), BufferKind::Temp);
    }
  }

  // Raw graphs: whatever the program still holds keeps its address.
  void fix_survivors() {
    refuse_boxed_survivors();
    for (auto& b : tape_->buffers) {
      if (b.kind == BufferKind::Temp) {
        if (auto alive = b.seen.lock()) {
          if (!b.written && b.nbytes > 0) {
            tape_->refuse("a tensor that is still held was written by something the recorder did not see");
          }
          b.kind = BufferKind::Fixed;
          b.survives = true;
          b.fixed = c10::Storage(std::move(alive));
        }
      }
    }
    for (auto& m : tape_->made) {
      const auto& b = tape_->buffers[tape_->values[m.value].buffer];
      if (m.alive() && b.kind == BufferKind::Fixed &&
          m.raw->unsafe_storage().unsafeGetStorageImpl() == b.fixed.unsafeGetStorageImpl()) {
        m.inside = true;
        tape_->met.push_back(std::move(m));
      }
    }
    tape_->made.clear();
    for (const auto& d : tape_->drawn) {
      if (!same_state(d)) {
        tape_->refuse("the block seeds a generator, which a replay would not do: seed it before replay() instead");
      }
    }
    tape_->drawn.clear();
  }

  // A raw graph writes its results where they are, which only plain memory allows.
  void refuse_boxed_survivors() {
    for (const auto& t : tape_->keep) {
      if (tape_->boxed_by_impl.count(t.unsafeGetTensorImpl()) > 0 && t.use_count() > 1) {
        tape_->refuse("a result is no plain strided tensor: a raw graph can't write it in place");
      }
    }
  }

  using Needs = std::function<std::pair<std::vector<int>, std::vector<int>>(int)>;
  std::shared_ptr<Plan> plan(Needs needs, int fuel) {
    for (auto& b : tape_->buffers) {
      b.seen.reset();
    }
    tape_->by_storage.clear();
    tape_->boxed_by_impl.clear();
    tape_->met_index.clear();
    auto plan = make_plan(tape_, outputs_, fuel);
    plan->needs = std::move(needs);
    return plan;
  }

  std::pair<std::string, std::string> refusal() const {
    return {tape_->refusal, tape_->refusal_line};
  }
  size_t nodes() const {
    return tape_->nodes.size();
  }
  int random_nodes() const {
    return tape_->random_nodes;
  }

 private:
  std::shared_ptr<Tape> tape_;
  std::vector<c10::TensorImpl*> impls_;
  std::vector<at::Generator> generators_;
  std::optional<OtherThreads> others_;
  std::vector<OutputRef> outputs_;
};

std::string describe_value(const Plan& plan, int id) {
  static const char* kinds[] = {"arena", "input", "output", "fixed"};
  const auto& t = *plan.tape;
  const auto& v = t.values[id];
  const auto& b = t.buffers[v.buffer];
  std::ostringstream s;
  s << "%" << id << ":" << c10::toString(c10::typeMetaToScalarType(v.dtype)) << c10::IntArrayRef(v.sizes) << "@";
  if (b.kind == BufferKind::Temp && b.adopted) {
    s << "adopted";
  } else if (b.kind == BufferKind::Temp && plan.offsets[v.buffer] < 0) {
    s << "registers";
  } else {
    s << kinds[static_cast<int>(b.kind)];
  }
  if (b.kind == BufferKind::Temp && !b.adopted && plan.offsets[v.buffer] >= 0) {
    s << "+" << plan.offsets[v.buffer] + v.offset * static_cast<int64_t>(v.dtype.itemsize());
  } else if (b.kind == BufferKind::Input) {
    s << b.input;
  }
  return s.str();
}

std::string describe(const Plan& plan, const TensorRef& ref) {
  if (ref.given >= 0) {
    return "input" + std::to_string(ref.given);
  }
  return ref.value >= 0 ? describe_value(plan, ref.value) : "boxed" + std::to_string(ref.boxed);
}

py::list node_rows(const Plan& plan) {
  static const char* tiers[] = {"held", "out", "boxed"};
  py::list rows;
  auto chain = plan.chains.begin();
  int index = 0;
  for (const auto& node : plan.tape->nodes) {
    while (chain != plan.chains.end() && chain->end < index) {
      ++chain;
    }
    const bool fused = chain != plan.chains.end() && chain->begin <= index;
    ++index;
    py::dict row;
    row["op"] = c10::toString(node.op.operator_name());
    row["tier"] = fused ? "fused" : node.kind == NodeKind::Lift ? "lift" : tiers[static_cast<int>(node.tier)];
    row["chain"] = fused ? static_cast<int>(chain - plan.chains.begin()) : -1;
    py::list in, out;
    for (const auto& ref : node.in) {
      in.append(describe(plan, ref));
    }
    for (const auto& ref : node.out) {
      out.append(describe(plan, ref));
    }
    row["in"] = in;
    row["out"] = out;
    row["note"] = node.note;
    row["line"] = node.line < 0 ? std::string() : plan.tape->lines[node.line];
    rows.append(row);
  }
  return rows;
}

std::vector<at::Tensor> run_checked(Executable& graph, const std::vector<at::Tensor>& inputs, int until) {
  TORCH_CHECK(inputs.size() == graph.plan().tape->inputs.size(), "the graph takes ", graph.plan().tape->inputs.size(),
              " inputs, got ", inputs.size());
  std::vector<const at::Tensor*> pointers;
  std::vector<const char*> first;
  for (const auto& t : inputs) {
    pointers.push_back(&t);
    first.push_back(is_plain(t) ? static_cast<const char*>(t.mutable_data_ptr()) : nullptr);
  }
  py::gil_scoped_release no_gil;
  return graph.run_until(pointers, first.data(), until);
}

void give_back_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  register_held();
  register_extra_held();
  m.attr("torch_version") = TORCH_VERSION;
  m.def("give_back_free_memory", &give_back_free_memory, py::call_guard<py::gil_scoped_release>());

  static py::exception<Diverged> diverged(m, "Diverged");
  static py::exception<Moved> moved(m, "Moved");
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) {
        std::rethrow_exception(p);
      }
    } catch (const Diverged& e) {
      py::set_error(diverged, e.what());
    } catch (const Forked& e) {
      py::set_error(py::module_::import("graphmode.errors").attr("StateError"), e.what());
    } catch (const Moved& e) {
      py::set_error(moved, e.what());
    }
  });

  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan")
      .def_readonly("arena_bytes", &Plan::arena_bytes)
      .def_readonly("output_bytes", &Plan::output_bytes)
      .def_readonly("fixed_bytes", &Plan::fixed_bytes)
      .def_readonly("held", &Plan::held)
      .def_readonly("out", &Plan::out)
      .def_readonly("boxed", &Plan::boxed)
      .def_readonly("fused", &Plan::fused)
      .def_property_readonly("chains", [](const Plan& p) { return p.chains.size(); })
      .def_readonly("mutated_inputs", &Plan::mutated_inputs)
      .def_property_readonly("inputs", [](const Plan& p) { return p.tape->inputs.size(); })
      .def_property_readonly("random_nodes", [](const Plan& p) { return p.tape->random_nodes; })
      .def("rows", &node_rows);

  py::class_<Capture>(m, "Capture")
      .def(py::init<>())
      .def("begin", &Capture::begin, py::arg("inputs"), py::arg("locate"), py::arg("constants") = py::none(),
           py::arg("given") = std::vector<int>())
      .def("end", &Capture::end)
      .def("outputs", &Capture::outputs)
      .def("fix_survivors", &Capture::fix_survivors)
      .def("plan", &Capture::plan, py::arg("needs") = nullptr, py::arg("fuel") = 0)
      .def("generator", &Capture::generator)
      .def("at", &Capture::at)
      .def("find", &Capture::find)
      .def_property_readonly("refusal", &Capture::refusal)
      .def_property_readonly("nodes", &Capture::nodes)
      .def_property_readonly("random_nodes", &Capture::random_nodes);

  py::class_<Replayable, std::shared_ptr<Replayable>>(m, "Replayable");
  py::class_<Executable, Replayable, std::shared_ptr<Executable>>(m, "Executable")
      .def(py::init([](std::shared_ptr<Plan> plan, bool poison) {
             RecordingOff off;
             at::AutoDispatchBelowADInplaceOrView below;
             return std::make_shared<Executable>(std::move(plan), poison);
           }),
           py::arg("plan"), py::arg("poison") = false)
      .def("run", &run_checked, py::arg("inputs"), py::arg("until") = -1)
      .def_property_readonly("instances", &Executable::instances);

  m.def("pause_recording", &pause_recording, py::arg("pause"));
  m.def("is_capturing", [] { return recording() != nullptr; });
  m.def("is_plain", [](const at::Tensor& t) { return is_plain(t); });
  m.def("forget_proofs", [] {
    forget_proofs();
    forget_row_proofs();
  });
  m.def("row_proofs", &row_proofs);
  m.def("arena_bytes", &arena_bytes);
  m.def("arena_blocks", &arena_blocks);
  m.def("held_ops", [] {
    std::vector<std::string> names;
    for (const auto& [name, op] : held_ops()) {
      names.push_back(name);
    }
    return names;
  });
  m.def(
      "place",
      [](const std::vector<std::tuple<int64_t, int, int>>& lifetimes) {
        std::vector<Lifetime> l;
        for (const auto& [bytes, first, last] : lifetimes) {
          l.push_back({bytes, first, last});
        }
        auto p = place(l);
        return std::make_pair(p.offsets, p.total);
      },
      py::arg("lifetimes"), "(bytes, first, last) per buffer -> (offsets, total).");
  bind_pinned(m);
  bind_places(m);
  bind_runner(m);
  bind_script(m);
  bind_mode(m);
  bind_watch(m);
  bind_fast_call(m);
}

}  // namespace graphmode
