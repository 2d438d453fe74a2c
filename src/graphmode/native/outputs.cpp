// What a replay hands out: tensors that stand to each other, and to the inputs, as eager's results would.
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "executable.h"

namespace graphmode {

namespace {

const c10::DispatchKeySet kMathBits({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

// A later write to either must reach the other's gradient, or raise.
at::Tensor as_view_of(const at::Tensor& base, at::Tensor t) {
  const auto bits = [](const at::Tensor& x) { return x.unsafeGetTensorImpl()->key_set() & kMathBits; };
  std::unique_ptr<torch::autograd::ViewFunc> func;
  if (base.dtype() != t.dtype() || bits(base) != bits(t)) {
    func = std::make_unique<torch::autograd::ErroringViewFunc>(
        "graphmode: a view with another dtype, or of a conjugate, that a graph handed out was changed in place under "
        "autograd; make the view outside of the compiled function");
  }
  const auto mode = c10::InferenceMode::is_enabled() ? torch::autograd::CreationMeta::INFERENCE_MODE
                    : c10::GradMode::is_enabled()    ? torch::autograd::CreationMeta::DEFAULT
                                                     : torch::autograd::CreationMeta::NO_GRAD_MODE;
  return torch::autograd::as_view(base, t, true, true, std::move(func), nullptr, mode);
}

at::Tensor over(const c10::Storage& storage, const Value& v) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), v.keys, v.dtype);
  impl->set_sizes_and_strides(v.sizes, v.strides);
  impl->set_storage_offset(v.offset);
  return at::Tensor(std::move(impl));
}

}  // namespace

at::Tensor over_input(const Tape& tape, const Value& v, const at::Tensor& input) {
  const auto& at_capture = tape.values[tape.inputs[tape.buffers[v.buffer].input]];
  // A view has its base's keys, and math bits of its own.
  const auto keys = (input.unsafeGetTensorImpl()->key_set() - kMathBits) | (v.keys & kMathBits);
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(input.storage()), keys, v.dtype);
  impl->set_sizes_and_strides(v.sizes, v.strides);
  const auto item = static_cast<int64_t>(v.dtype.itemsize());
  const auto moved = (input.storage_offset() - at_capture.offset) * static_cast<int64_t>(at_capture.dtype.itemsize());
  impl->set_storage_offset(v.offset + moved / item);
  if (!input.is_inference()) {
    impl->set_version_counter(input.unsafeGetTensorImpl()->version_counter());
  }
  return at::Tensor(std::move(impl));
}

std::vector<at::Tensor> make_outputs(const Plan& plan, at::ArrayRef<const at::Tensor*> inputs,
                                     const std::vector<c10::Storage>& storages, const std::vector<c10::IValue>& boxed) {
  const auto& tape = *plan.tape;
  std::vector<at::Tensor> results(plan.outputs.size());
  std::unordered_map<int, size_t> first_over;  // buffer -> result whose version counter its aliases share
  std::unordered_map<int, at::Tensor> unseen;  // value -> base that is no result
  std::optional<c10::InferenceMode> mode;
  const bool inference = c10::InferenceMode::is_enabled();
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& out = plan.outputs[i];
    if (out.same_as_input >= 0) {
      results[i] = *inputs[out.same_as_input];
      continue;
    }
    if (out.boxed >= 0) {
      results[i] = boxed[out.boxed].toTensor();
      continue;
    }
    const auto& v = tape.values[out.value];
    const auto& b = tape.buffers[v.buffer];
    if (b.kind == BufferKind::Input) {
      const auto& base = *inputs[b.input];
      auto t = over_input(tape, v, base);
      results[i] = out.view ? as_view_of(base, std::move(t)) : std::move(t);
      continue;
    }
    if (out.inference != inference) {
      mode.emplace(out.inference);
    }
    const auto& storage = b.kind == BufferKind::Fixed ? b.fixed : storages[v.buffer];
    auto t = over(storage, v);
    mode.reset();
    auto [it, fresh] = first_over.emplace(v.buffer, i);
    if (!fresh && !t.is_inference() && !results[it->second].is_inference()) {
      t.unsafeGetTensorImpl()->set_version_counter(results[it->second].unsafeGetTensorImpl()->version_counter());
    }
    results[i] = std::move(t);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    const auto& out = plan.outputs[i];
    if (out.base >= 0) {
      results[i] = as_view_of(results[out.base], results[i]);
    } else if (out.hidden >= 0) {
      auto& base = unseen[out.hidden];
      if (!base.defined()) {
        const auto& v = tape.values[out.hidden];
        const auto& b = tape.buffers[v.buffer];
        base = over(b.kind == BufferKind::Fixed ? b.fixed : storages[v.buffer], v);
      }
      results[i] = as_view_of(base, results[i]);
    }
  }
  return results;
}

}  // namespace graphmode
