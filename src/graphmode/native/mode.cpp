#include "mode.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Device.h>
#include <torch/csrc/PyInterpreter.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace graphmode {

namespace {

uint64_t rounding() {
  // torch.set_flush_denormal writes here, for one thread; torch has no getter.
#if defined(__x86_64__)
  constexpr unsigned kControl = ~0x3FU;  // the six lowest bits are what earlier operations left
  return _mm_getcsr() & kControl;
#elif defined(__aarch64__)
  uint64_t fpcr = 0;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr & 0xFFFFFFFF;
#else
  return 0;
#endif
}

uint64_t kernel_flags(at::Context& c) {
  uint64_t bits = 0;
  for (const bool flag : {
           c10::InferenceMode::is_enabled(),
           c.deterministicAlgorithms(),
           c.deterministicAlgorithmsWarnOnly(),
           c.deterministicFillUninitializedMemory(),
           c.deterministicMkldnn(),
           c.userEnabledMkldnn(),
           c.userEnabledNNPACK(),
           c.userEnabledFlashSDP(),
           c.userEnabledMathSDP(),
           c.userEnabledMemEfficientSDP(),
           c.userEnabledCuDNNSDP(),
           c.userEnabledOverrideableSDP(),
           c.allowFP16BF16ReductionMathSDP(),
           c.allowFP16ReductionCPU(),
       }) {
    bits = bits << 1 | static_cast<uint64_t>(flag);
  }
  for (const auto op : {at::Float32Op::MATMUL, at::Float32Op::CONV, at::Float32Op::RNN}) {
    bits = bits << 3 | static_cast<uint64_t>(c.float32Precision(at::Float32Backend::MKLDNN, op));
  }
  for (const auto backend : c.sDPPriorityOrder()) {
    bits = bits << 3 | (static_cast<uint64_t>(backend) & 7);
  }
  return bits;
}

// torch's class of such modes. Looked up once, when the module is loaded: an import in a call may wait for another
// thread.
PyObject* device_context = nullptr;

// The device that torch.set_default_device, or `with torch.device(...)`, has functions make tensors on; null where a
// mode of torch functions is anything else.
PyObject* device_of(PyObject* mode) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(mode)) != device_context) {
    return nullptr;
  }
  const auto device = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttrString(mode, "device"));
  if (!device || !THPDevice_Check(device.ptr())) {
    PyErr_Clear();
    return nullptr;
  }
  return device.ptr();  // the mode holds it
}

// Of the innermost default device; 0 where there is none.
uint64_t default_device() {
  uint64_t bits = 0;
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    PyObject* device = device_of(at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter()));
    if (device != nullptr) {
      const auto& d = reinterpret_cast<THPDevice*>(device)->device;
      bits = (static_cast<uint64_t>(d.type()) & 63) << 8 | static_cast<uint8_t>(d.index());
      bits |= uint64_t{1} << 14;
    }
  }
  return bits;
}

bool only_default_devices() {
  const auto modes = at::impl::PythonTorchFunctionTLS::stack_len();
  for (int64_t i = 0; i < modes; ++i) {
    if (device_of(at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter())) == nullptr) {
      return false;
    }
  }
  return true;
}

}  // namespace

Mode current_mode() {
  auto& context = at::globalContext();
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  const auto dtype = static_cast<uint64_t>(at::get_default_dtype_as_scalartype());
  const auto engine = static_cast<uint64_t>(context.qEngine());
  const auto threads = static_cast<uint64_t>(at::get_num_threads());
  return {{keys.included_.raw_repr(), keys.excluded_.raw_repr(), kernel_flags(context),
           threads << 48 | (engine & 0xFF) << 40 | (dtype & 0xFF) << 32 | rounding()}};
}

uint64_t traced_mode() {
  const auto& context = at::globalContext();
  uint64_t bits = c10::GradMode::is_enabled();
  for (const auto option : {context.allowFP16ReductionCuBLAS(), context.allowBF16ReductionCuBLAS()}) {
    bits = bits << 2 | static_cast<uint64_t>(option);
  }
  const auto precision = context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  bits = bits << 3 | static_cast<uint64_t>(precision);
  bits = bits << 1 | at::autocast::is_autocast_cache_enabled();
  for (const auto device : {at::kCPU, at::kCUDA, at::kXPU, at::kPrivateUse1}) {
    bits = bits << 8 |  // whether it is enabled is in the dispatch keys
           static_cast<uint64_t>(at::autocast::get_autocast_dtype(device));
  }
  const auto functions = at::impl::PythonTorchFunctionTLS::get_disabled_state();
  bits = bits << 2 | static_cast<uint64_t>(functions);
  return bits << 15 | default_device();
}

bool is_observed() {
  return !only_default_devices() || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         !at::SavedTensorDefaultHooks::get_tls_state().stack.empty();
}

void bind_mode(pybind11::module_& m) {
  device_context =
      pybind11::object(pybind11::module_::import("torch.utils._device").attr("DeviceContext")).release().ptr();
  const auto bits = [] { return pybind11::tuple(pybind11::cast(current_mode().words)); };
  m.def("mode_bits", bits, "What a graph depends on besides its arguments, as four numbers.");
  m.def(
      "traced_mode", [bits] { return std::make_pair(bits(), traced_mode()); },
      "The same, with gradients and autocast: what code traced by Dynamo depends on.");
  m.def("is_observed", &is_observed, "Whether a mode or hook looks at what a call runs.");
}

}  // namespace graphmode
