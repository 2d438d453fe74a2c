// Every op that torch_npu has a kernel for, by one function: shapes from the op's meta kernel, memory from torch_npu's
// allocator, values in the stream's turn, from the CPU's kernel of an ATen op and from the reference of an npu:: or
// atb:: one. Views, allocation and copies stay torch_npu's own.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <unordered_set>

#include "random.h"
#include "reference.h"
#include "task.h"

namespace sim {
namespace {

using torch::jit::Stack;

// --- what stays torch_npu's

bool stays(const std::string& name) {
  static const std::unordered_set<std::string> own = {
      // memory and its bookkeeping
      "unsafe_empty_with_format",
      "resize_",
      "resize_as_",
      "set_",
      "_resize_output_",
      "record_stream",
      "is_pinned",
      "_pin_memory",
      "pin_memory",
      "is_set_to",
      "_has_compatible_shallow_copy_type",
      "_lazy_clone",
      "get_storage_size",
      "get_npu_format",
      "copy_memory_",
      "npu_change_data_ptr",
      // copies
      "copy_",
      "_copy_from",
      "_copy_from_and_resize",
      "_to_copy",
      "clone",
      "contiguous",
      "_local_scalar_dense",
      "_foreach_copy_",
      // views
      "as_strided",
      "as_strided_",
      "view",
      "view_as_complex",
      "view_as_real",
      "_reshape_alias",
      "unfold",
      "squeeze",
      "unsqueeze",
      "_neg_view",
      "_conj",
      "_conj_physical_",
      "_to_dense",
  };
  // A kernel would write what nobody asked for, at each replay.
  return own.count(name) > 0 || name.rfind("empty", 0) == 0 || name.rfind("new_empty", 0) == 0;
}

// torch_npu's own ops that it makes of ATen's, of copies or of nothing on a device: they work as they are.
bool made_of_others(const std::string& name) {
  static const std::unordered_set<std::string> own = {
      // memory and its bookkeeping
      "npu::copy_memory_",
      "npu::get_npu_format",
      "npu::get_storage_size",
      "npu::npu_change_data_ptr",
      "npu::empty_with_format",
      "npu::empty_with_swapped_memory",
      "npu::unsafe_empty_with_format",
      // labels
      "npu::npu_format_cast",
      "npu::npu_format_cast.Tensor",
      "npu::npu_format_cast_",
      "npu::npu_format_cast_.acl_format",
      "npu::_npu_format_cast",
      "npu::_npu_format_cast.aclnn",
      "npu::_npu_format_cast.input_dtype",
      // by their names, of ATen's ops
      "npu::npu_reshape",
      "npu::npu_reshape.out",
      "npu::one_",
  };
  return own.count(name) > 0;
}

// Ops that a CPU has under another name only.
std::string on_cpu(const std::string& name) {
  if (name == "convolution_overrideable")
    return "convolution";
  if (name == "convolution_backward_overrideable")
    return "convolution_backward";
  return name;
}

// --- values

bool is_tensor_list(const c10::IValue& value) {
  return value.isTensorList() || value.isOptionalTensorList();
}

// The first device of a call, from its tensors or its device argument; -1 where there is none.
int device_in(const c10::IValue& value) {
  if (value.isTensor())
    return on_device(value.toTensor()) ? value.toTensor().device().index() : -1;
  if (value.isDevice()) {
    const auto device = value.toDevice();
    if (device.type() != c10::DeviceType::PrivateUse1)
      return -1;
    return device.has_index() ? device.index() : c10::impl::getDeviceGuardImpl(device.type())->getDevice().index();
  }
  if (is_tensor_list(value)) {
    for (const c10::IValue& item : value.toListRef()) {
      const int found = device_in(item);
      if (found >= 0)
        return found;
    }
  }
  return -1;
}

at::Tensor as_meta(const at::Tensor& tensor) {
  if (!on_device(tensor))
    return tensor;
  auto meta =
      at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta).pinned_memory(false));
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number())
    meta.unsafeGetTensorImpl()->set_wrapped_number(true);
  return meta;
}

c10::IValue mapped(const c10::IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map,
                   at::DeviceType device) {
  if (value.isTensor())
    return value.toTensor().defined() ? c10::IValue(map(value.toTensor())) : value;
  if (value.isDevice() && value.toDevice().type() == c10::DeviceType::PrivateUse1)
    return at::Device(device);
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& item : value.toTensorVector())
      list.push_back(map(item));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const c10::IValue& item : value.toListRef()) {
      if (item.isTensor() && item.toTensor().defined()) {
        list.push_back(map(item.toTensor()));
      } else {
        list.push_back(std::nullopt);
      }
    }
    return list;
  }
  return value;
}

bool writes(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// The argument that a result is; -1 for a result of its own.
int argument_of(const c10::FunctionSchema& schema, const c10::Argument& result) {
  if (result.alias_info() == nullptr)
    return -1;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->beforeSets() == result.alias_info()->beforeSets())
      return static_cast<int>(i);
  }
  return -1;
}

void for_tensors(const c10::IValue& value, const std::function<void(const at::Tensor&)>& see) {
  if (value.isTensor()) {
    if (value.toTensor().defined())
      see(value.toTensor());
  } else if (is_tensor_list(value)) {
    for (const c10::IValue& item : value.toListRef())
      for_tensors(item, see);
  }
}

// --- one call

struct Call {
  const c10::OperatorHandle& op;
  c10::OperatorHandle cpu;
  const c10::FunctionSchema& schema;
  std::vector<c10::IValue> arguments;
  int device;
  std::string name;
  const Reference* reference;  // of an op of torch_npu's own, else null
};

std::string full_name(const c10::FunctionSchema& schema) {
  return schema.overload_name().empty() ? schema.name() : schema.name() + "." + schema.overload_name();
}

// What computes an op's values on the host.
std::function<void(Stack*)> values_of(const Call& call) {
  if (call.reference == nullptr)
    return [cpu = call.cpu](Stack* stack) { cpu.callBoxed(stack); };
  return [op = call.op, kernel = call.reference->values](Stack* stack) { kernel.callBoxed(op, {}, stack); };
}

// The argument, or the item of the last one, that a result is; nothing for a result of its own.
std::optional<c10::IValue> given(const Call& call, size_t result) {
  int same = argument_of(call.schema, call.schema.returns()[result]);
  if (call.reference != nullptr && call.reference->results_in_list)
    return c10::IValue(call.arguments.back().toTensorVector().at(result));
  if (call.reference != nullptr && result < call.reference->results.size())
    same = call.reference->results[result];
  return same < 0 ? std::nullopt : std::optional(call.arguments[static_cast<size_t>(same)]);
}

[[noreturn]] void two_devices(const Call& call, const at::Tensor& tensor) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, npu:", call.device,
              " and ", tensor.device(), "! (", call.name, ")");
}

// Tensors of the host may come as one value, or as indices; the device gets them by value or as a copy.
void bring(Call& call) {
  const bool indices = call.name == "aten::index" || call.name.rfind("aten::index_put", 0) == 0 ||
                       call.name.rfind("aten::_index_put_impl_", 0) == 0 || call.name == "aten::_unsafe_index";
  const at::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(call.device));
  for (auto& argument : call.arguments) {
    argument = mapped(
        argument,
        [&](const at::Tensor& tensor) {
          if (!tensor.defined() || on_device(tensor) || tensor.is_meta())
            return tensor;
          if (tensor.dim() == 0) {  // its value now
            auto value = tensor.clone();
            value.unsafeGetTensorImpl()->set_wrapped_number(tensor.unsafeGetTensorImpl()->is_wrapped_number());
            return value;
          }
          if (call.name.rfind("atb::", 0) == 0)  // lengths: the host reads them to plan the task
            return tensor.clone();
          if (!indices)
            two_devices(call, tensor);
          return tensor.to(device);
        },
        device.type());
  }
}

bool not_implemented(PyObject* type) {
  const py::gil_scoped_acquire gil;
  return type != nullptr && PyErr_GivenExceptionMatches(type, PyExc_NotImplementedError) != 0;
}

// Results as metadata, or nothing where the op can't say them without values.
std::optional<Stack> shapes(Call& call) {
  Stack stack;
  for (const auto& argument : call.arguments)
    stack.push_back(mapped(argument, as_meta, at::kMeta));
  Stack before = stack;
  const bool by_values = call.op.hasTag(at::Tag::dynamic_output_shape);
  try {
    at::AutoDispatchBelowADInplaceOrView below;
    if (call.reference == nullptr || !call.reference->shapes.isValid()) {
      if (call.reference != nullptr && !call.op.hasKernelForDispatchKey(c10::DispatchKey::Meta))
        return Stack(call.schema.returns().size());  // it only writes into its arguments
      call.cpu.callBoxed(&stack);
    } else {
      call.reference->shapes.callBoxed(call.op, {}, &stack);
    }
  } catch (const c10::NotImplementedError&) {
    return std::nullopt;
  } catch (const c10::Error&) {
    if (!by_values)
      throw;
    return std::nullopt;
  } catch (const python_error& error) {  // of a meta kernel in Python
    if (!by_values && !not_implemented(error.type))
      throw;
    return std::nullopt;
  } catch (const py::error_already_set& error) {
    if (!by_values && !not_implemented(error.type().ptr()))
      throw;
    return std::nullopt;
  }
  // Out arguments may have grown.
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    if (!writes(call.schema.arguments()[i]) || !call.arguments[i].isTensor() || !before[i].isTensor())
      continue;
    const at::Tensor& real = call.arguments[i].toTensor();
    const at::Tensor& meta = before[i].toTensor();
    if (on_device(real) && meta.defined() && !real.sizes().equals(meta.sizes()))
      real.resize_(meta.sizes());
  }
  return stack;
}

// torch_npu's own ops give their results in plain order, whatever strides the inputs have.
at::Tensor allocate(const at::Tensor& like, const Call& call) {
  const auto options =
      like.options().device(at::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(call.device)));
  return call.reference != nullptr ? at::empty(like.sizes(), options)
                                   : at::empty_strided(like.sizes(), like.strides(), options);
}

c10::IValue results_like(const c10::IValue& value, const Call& call) {
  return mapped(
      value, [&](const at::Tensor& t) { return t.defined() ? allocate(t, call) : t; }, c10::DeviceType::PrivateUse1);
}

Value frozen(const c10::IValue& value, std::vector<Place>& used) {
  Value held;
  if (value.isTensor() && on_device(value.toTensor())) {
    held.place.push_back(place_of(value.toTensor()));
    used.push_back(held.place.back());
  } else if (is_tensor_list(value)) {
    held.is_list = true;
    held.plain = value.isTensorList();
    for (const c10::IValue& item : value.toListRef())
      held.list.push_back(frozen(item, used));
  } else if (value.isDevice() && value.toDevice().type() == c10::DeviceType::PrivateUse1) {
    held.plain = at::Device(at::kCPU);
  } else {
    held.plain = value;
  }
  return held;
}

c10::IValue thawed(const Value& value) {
  if (!value.place.empty())
    return value.place[0].on_host();
  if (!value.is_list)
    return value.plain;
  if (value.plain.toBool()) {
    c10::List<at::Tensor> list;
    for (const Value& item : value.list)
      list.push_back(thawed(item).toTensor());
    return list;
  }
  c10::List<std::optional<at::Tensor>> list;
  for (const Value& item : value.list) {
    const c10::IValue one = thawed(item);
    list.push_back(one.isTensor() && one.toTensor().defined() ? std::optional(one.toTensor()) : std::nullopt);
  }
  return list;
}

// What came out goes to where the device's result lies, if it is not there already; in the dtype that the meta kernel
// said, where the CPU has another (the statistics of a norm in bfloat16).
void put(const c10::IValue& found, const Value& wanted) {
  if (!wanted.place.empty()) {
    const at::Tensor to = wanted.place[0].on_host(), from = found.toTensor();
    if (from.data_ptr() == to.data_ptr())
      return;
    if ((from.numel() == 0) != (to.numel() == 0))
      return;  // what only gradients read, kept where somebody trains: of batch norm, of embedding bags
    const bool rounds = at::isFloatingType(from.scalar_type()) && at::isFloatingType(to.scalar_type());
    const bool counts = at::isIntegralType(from.scalar_type(), false) && at::isIntegralType(to.scalar_type(), false);
    TORCH_CHECK(from.sizes().equals(to.sizes()) && (from.scalar_type() == to.scalar_type() || rounds || counts),
                "a CPU kernel gave ", from.toString(), from.sizes(), " where the meta kernel had said ", to.toString(),
                to.sizes());
    to.copy_(from);
  } else if (wanted.is_list) {
    const auto items = found.toListRef();
    for (size_t i = 0; i < wanted.list.size(); ++i)
      put(items[i], wanted.list[i]);
  }
}

// Sizes depend on values: the device is waited for, and the values are taken from it.
void at_once(Call& call, Stack* stack) {
  TORCH_CHECK(
      !capturing(call.device), call.name,
      " can't be captured: the size of its result depends on values, and the device would have to be waited for");
  synchronize(call.device);
  std::vector<Place> used;
  Stack host;
  for (const auto& argument : call.arguments)
    host.push_back(thawed(frozen(argument, used)));
  {
    at::AutoDispatchBelowADInplaceOrView below;
    values_of(call)(&host);
  }
  for (size_t i = 0; i < host.size(); ++i) {
    if (const auto same = given(call, i)) {
      stack->push_back(*same);
      continue;
    }
    const at::Device device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(call.device));
    stack->push_back(mapped(host[i], [&](const at::Tensor& t) { return t.defined() ? t.to(device) : t; }, at::kCPU));
  }
}

// Ops whose CPU kernel draws from the host's default generator: made of ops that take the device's.
bool on_the_device(Call& call, Stack* stack) {
  const auto& a = call.arguments;
  const auto number = [](const c10::IValue& value) { return value.isNone() ? 0.0 : value.toScalar().toDouble(); };
  if (call.name == "aten::native_dropout") {
    const at::Tensor input = a[0].toTensor();
    const double p = a[1].toDouble();
    if (p == 0 || input.numel() == 0 || !a[2].toOptional<bool>().value_or(true)) {
      stack->emplace_back(input.clone());
      stack->emplace_back(at::ones(input.sizes(), input.options().dtype(at::kBool)));
      return true;
    }
    const at::Tensor mask = at::empty_like(input, input.options().dtype(at::kBool)).bernoulli_(1 - p);
    stack->emplace_back(input.mul(mask).mul_(p == 1 ? 0.0 : 1 / (1 - p)));
    stack->emplace_back(mask);
    return true;
  }
  if (call.name == "aten::randperm" && call.schema.overload_name().empty()) {
    const auto options =
        at::TensorOptions().dtype(a[1].toOptional<at::ScalarType>()).device(a[3].toOptional<at::Device>());
    stack->emplace_back(at::randperm(a[0].toInt(), std::optional<at::Generator>(), options));
    return true;
  }
  if (call.name == "aten::randperm" && call.schema.overload_name() == "out") {
    at::Tensor out = a[1].toTensor();
    stack->emplace_back(at::randperm_out(out, a[0].toInt(), std::optional<at::Generator>()));
    return true;
  }
  if (call.name == "aten::scaled_dot_product_attention" && a[4].toDouble() > 0) {
    stack->emplace_back(std::get<0>(at::_scaled_dot_product_attention_math(
        a[0].toTensor(), a[1].toTensor(), a[2].toTensor(), a[3].toOptional<at::Tensor>(), a[4].toDouble(),
        a[5].toBool(), std::nullopt, a[6].toOptional<double>(), a[7].toBool())));
    return true;
  }
  if (call.name == "aten::gru" || call.name == "aten::lstm") {
    for (size_t i = 0; i < a.size(); ++i) {
      TORCH_CHECK(call.schema.arguments()[i].name() != "dropout" || number(a[i]) == 0, call.name,
                  " with dropout is not emulated: its CPU kernel draws from the host's generator");
    }
  }
  return false;
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  Call call{op, op, schema, torch::jit::last(*stack, count).vec(), -1, schema.name(), reference_of(full_name(schema))};
  const std::string short_name = schema.name().substr(schema.name().find("::") + 2);
  if (call.reference == nullptr && on_cpu(short_name) != short_name) {
    call.cpu = c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + on_cpu(short_name)).c_str(),
                                                              schema.overload_name().c_str());
  }
  torch::jit::drop(*stack, count);
  for (const auto& argument : call.arguments) {
    if (call.device < 0)
      call.device = device_in(argument);
  }
  TORCH_CHECK(call.device >= 0, call.name, ": no tensor and no device argument is on an NPU");
  c10::DeviceGuard guard(at::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(call.device)));
  bring(call);
  if (on_the_device(call, stack))
    return;
  const auto draw = generator_of(schema, call.arguments, call.device);
  std::optional<Stack> meta;
  try {
    meta = shapes(call);
  } catch (...) {  // one of the ops that it is made of may have a size that depends on values
    if (!op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd))
      throw;
    stack->insert(stack->end(), call.arguments.begin(), call.arguments.end());
    op.callBoxedForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd, *stack);
    return;
  }
  if (!meta) {
    TORCH_CHECK(!draw, call.name, " draws numbers and its size depends on values: not emulated");
    at_once(call, stack);
    return;
  }
  std::vector<Place> used;
  std::vector<Value> arguments, results;
  for (const auto& argument : call.arguments)
    arguments.push_back(frozen(argument, used));
  for (size_t i = 0; i < meta->size(); ++i) {
    if (const auto same = given(call, i)) {
      stack->push_back(*same);
      results.emplace_back();
    } else {
      stack->push_back(results_like((*meta)[i], call));
      results.push_back(frozen(stack->back(), used));
    }
  }
  if (call.reference != nullptr && !call.reference->values.isValid())
    return;
  if (draw)
    draw->append_to(used);
  auto work = [values = values_of(call), arguments = std::move(arguments), results = std::move(results), draw] {
    Stack host;
    for (const Value& argument : arguments)
      host.push_back(thawed(argument));
    if (draw)
      draw->give(host);
    values(&host);
    for (size_t i = 0; i < results.size(); ++i)
      put(host[i], results[i]);
  };
  enqueue(call.name, call.device, std::move(work), std::move(used));
}

// What torch_npu differentiates by functions of its own, which call kernels that are not here, becomes what PyTorch
// does: the op itself where nobody needs gradients, else the ops that it is made of.
void differentiated(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  bool grad = false;
  if (at::GradMode::is_enabled()) {
    for (const auto& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
      for_tensors(argument, [&](const at::Tensor& t) { grad = grad || t.requires_grad(); });
    }
  }
  if (grad) {
    const bool made_of_others = op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    op.callBoxedForDispatchKey(
        made_of_others ? c10::DispatchKey::CompositeImplicitAutograd : c10::DispatchKey::Autograd, *stack);
    return;
  }
  at::AutoDispatchBelowAutograd below;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

// An op of torch_npu's own that nobody wrote a reference for.
void refuse(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, full_name(op.schema()),
                              " is not emulated: to add it, write what it means as a function on tensors of the host "
                              "in the file of ascend-sim/src/ascend_sim/kernels/ for its concern, and put it in that "
                              "file's table");
}

std::optional<c10::OperatorHandle> find(const std::string& full) {
  const auto dot = full.find('.');
  return c10::Dispatcher::singleton().findSchema(
      {full.substr(0, dot), dot == std::string::npos ? "" : full.substr(dot + 1)});
}

void implement(const std::string& full, c10::DispatchKey key, torch::CppFunction&& function) {
  static std::vector<std::unique_ptr<torch::Library>> held;  // one that goes takes its kernels with it
  const auto colons = full.find("::");
  held.push_back(
      std::make_unique<torch::Library>(torch::Library::IMPL, full.substr(0, colons), key, __FILE__, __LINE__));
  held.back()->impl(full.substr(colons + 2).c_str(), std::move(function));
}

}  // namespace

// Takes the place of torch_npu's own kernels; called once, after they are registered.
std::vector<std::string> take_over(const std::vector<std::string>& names) {
  std::vector<std::string> taken;
  for (const auto& full : names) {
    const auto op = find(full);
    if (!op)
      continue;  // registered, and never defined
    if (op->schema().name().rfind("aten::", 0) == 0) {
      bool view = false;
      for (const auto& argument : op->schema().arguments()) {
        view = view || (argument.alias_info() != nullptr && !argument.alias_info()->isWrite());
      }
      if (view || stays(full.substr(6, full.find('.') - 6)))
        continue;
      implement(full, c10::DispatchKey::PrivateUse1, torch::CppFunction::makeFromBoxedFunction<&fallback>());
    } else if (const Reference* reference = reference_of(full)) {
      for (const auto& type : reference->types) {
        const auto wrong =
            c10::findSchemaDifferences(type->cloneWithRealTypes(false), op->schema().cloneWithRealTypes(false));
        TORCH_CHECK(!wrong, "the reference of ", full, " does not fit its schema ", op->schema(), ": ", *wrong);
      }
      implement(full, c10::DispatchKey::PrivateUse1, torch::CppFunction::makeFromBoxedFunction<&fallback>());
    } else if (!made_of_others(full)) {
      implement(full, c10::DispatchKey::PrivateUse1, torch::CppFunction::makeFromBoxedFunction<&refuse>());
      continue;
    } else {
      continue;
    }
    taken.push_back(full);
  }
  return taken;
}

// The same for the functions that torch_npu differentiates itself.
std::vector<std::string> take_over_gradients(const std::vector<std::string>& names) {
  std::vector<std::string> taken;
  for (const auto& full : names) {
    const auto op = find(full);
    if (!op || stays(full.substr(6, full.find('.') - 6)))
      continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
        !op->hasKernelForDispatchKey(c10::DispatchKey::Autograd)) {
      continue;
    }
    implement(full, c10::DispatchKey::AutogradPrivateUse1,
              torch::CppFunction::makeFromBoxedFunction<&differentiated>());
    taken.push_back(full);
  }
  return taken;
}

}  // namespace sim
