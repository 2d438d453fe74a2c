// Python bindings: capture, executable, planner, arena. Types are declared in ../_C.pyi.
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <sstream>

#include "executable.h"
#include "fast_call.h"
#include "mode.h"
#include "prove.h"
#include "recorder.h"
#include "runner.h"
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
  void begin(const std::vector<std::optional<at::Tensor>>& arguments, std::function<std::string()> locate,
             const std::optional<std::vector<at::Tensor>>& constants) {
    TORCH_CHECK(recording() == nullptr, "a capture is already open on this thread");
    std::vector<at::Tensor> inputs;
    for (const auto& t : arguments) {
      inputs.push_back(t.value_or(at::Tensor()));
    }
    declare_inputs(*tape_, inputs);
    if (constants) {
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
    tape_->locate = nullptr;
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
    return indices;
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
          b.fixed = c10::Storage(std::move(alive));
        }
      }
    }
  }

  // A raw graph writes its results where they are, which only plain memory allows.
  void refuse_boxed_survivors() {
    for (const auto& t : tape_->keep) {
      if (tape_->boxed_by_impl.count(t.unsafeGetTensorImpl()) > 0 && t.use_count() > 1) {
        tape_->refuse("a result is no plain strided tensor: a raw graph can't write it in place");
      }
    }
  }

  std::shared_ptr<Plan> plan() {
    for (auto& b : tape_->buffers) {
      b.seen.reset();
    }
    tape_->by_storage.clear();
    tape_->boxed_by_impl.clear();
    tape_->met_index.clear();
    return make_plan(tape_, outputs_);
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
  } else {
    s << kinds[static_cast<int>(b.kind)];
  }
  if (b.kind == BufferKind::Temp && !b.adopted) {
    s << "+" << plan.offsets[v.buffer] + v.offset * static_cast<int64_t>(v.dtype.itemsize());
  } else if (b.kind == BufferKind::Input) {
    s << b.input;
  }
  return s.str();
}

py::list node_rows(const Plan& plan) {
  static const char* tiers[] = {"held", "out", "boxed"};
  py::list rows;
  for (const auto& node : plan.tape->nodes) {
    py::dict row;
    row["op"] = c10::toString(node.op.operator_name());
    row["tier"] = node.kind == NodeKind::Lift ? "lift" : tiers[static_cast<int>(node.tier)];
    py::list in, out;
    for (const auto& ref : node.in) {
      in.append(ref.value >= 0 ? describe_value(plan, ref.value) : "boxed" + std::to_string(ref.boxed));
    }
    for (const auto& ref : node.out) {
      out.append(ref.value >= 0 ? describe_value(plan, ref.value) : "boxed" + std::to_string(ref.boxed));
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
  return graph.run(pointers, first.data(), until);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  register_held();
  register_extra_held();
  m.attr("torch_version") = TORCH_VERSION;

  static py::exception<Diverged> diverged(m, "Diverged");
  static py::exception<Moved> moved(m, "Moved");
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) {
        std::rethrow_exception(p);
      }
    } catch (const Diverged& e) {
      py::set_error(diverged, e.what());
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
      .def_readonly("mutated_inputs", &Plan::mutated_inputs)
      .def_property_readonly("inputs", [](const Plan& p) { return p.tape->inputs.size(); })
      .def_property_readonly("random_nodes", [](const Plan& p) { return p.tape->random_nodes; })
      .def("rows", &node_rows);

  py::class_<Capture>(m, "Capture")
      .def(py::init<>())
      .def("begin", &Capture::begin, py::arg("inputs"), py::arg("locate"), py::arg("constants") = py::none())
      .def("end", &Capture::end)
      .def("outputs", &Capture::outputs)
      .def("fix_survivors", &Capture::fix_survivors)
      .def("plan", &Capture::plan)
      .def_property_readonly("refusal", &Capture::refusal)
      .def_property_readonly("nodes", &Capture::nodes)
      .def_property_readonly("random_nodes", &Capture::random_nodes);

  py::class_<Executable, std::shared_ptr<Executable>>(m, "Executable")
      .def(py::init([](std::shared_ptr<Plan> plan, bool poison) {
             RecordingOff off;
             at::AutoDispatchBelowADInplaceOrView below;
             return std::make_shared<Executable>(std::move(plan), poison);
           }),
           py::arg("plan"), py::arg("poison") = false)
      .def("run", &run_checked, py::arg("inputs"), py::arg("until") = -1)
      .def_property_readonly("instances", &Executable::instances);

  m.def("is_capturing", [] { return recording() != nullptr; });
  m.def("is_plain", [](const at::Tensor& t) { return is_plain(t); });
  m.def("forget_proofs", &forget_proofs);
  m.def("arena_bytes", &arena_bytes);
  m.def("arena_blocks", &arena_blocks);
  m.def("arena_release", &arena_release);
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
  bind_runner(m);
  bind_mode(m);
  bind_watch(m);
  bind_fast_call(m);
}

}  // namespace graphmode
