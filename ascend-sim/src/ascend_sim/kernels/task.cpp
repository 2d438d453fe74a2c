#include "task.h"

#include "acl/acl.h"
#include "torch_npu/csrc/core/npu/NPUGraphsUtils.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

namespace sim {

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == c10::DeviceType::PrivateUse1;
}

Place place_of(const at::Tensor& tensor) {
  size_t reach = tensor.numel() == 0 ? 0 : 1;
  for (int64_t d = 0; reach > 0 && d < tensor.dim(); ++d) {
    reach += static_cast<size_t>((tensor.size(d) - 1) * tensor.stride(d));
  }
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.sizes().vec(),
          tensor.strides().vec(),
          tensor.scalar_type(),
          tensor.is_conj(),
          tensor.is_neg(),
          reach * tensor.element_size()};
}

at::Tensor Place::on_host() const {
  auto tensor = at::from_blob(ascsim_host(address), sizes, strides, at::TensorOptions().dtype(dtype));
  if (conj)
    tensor._set_conj(true);
  if (neg)
    tensor._set_neg(true);
  return tensor;
}

namespace {
struct Held {
  Work work;
  int threads;
  std::string wrong;
};

const char* run(void* argument) {
  auto* held = static_cast<Held*>(argument);
  // As the caller's thread would run it: the number of threads decides on the bits of a sum.
  if (at::get_num_threads() != held->threads)
    at::set_num_threads(held->threads);
  at::AutoDispatchBelowADInplaceOrView below;
  try {
    held->work();
  } catch (const c10::Error& error) {
    held->wrong = error.what_without_backtrace();
    return held->wrong.c_str();
  } catch (const std::exception& error) {
    held->wrong = error.what();
    return held->wrong.c_str();
  }
  return nullptr;
}

void drop(void* argument) {
  delete static_cast<Held*>(argument);
}
}  // namespace

int launch(void* stream, const std::string& name, Work work, const std::vector<Place>& used, int threads) {
  std::vector<ascsim_range> ranges;
  ranges.reserve(used.size());
  for (const auto& place : used)
    ranges.push_back({place.address, place.bytes});
  auto* held = new Held{std::move(work), threads, ""};
  return ascsim_launch(stream, name.c_str(), run, drop, held, ranges.data(), ranges.size());
}

void enqueue(const std::string& name, int device, Work work, std::vector<Place> used) {
  const auto stream = c10_npu::getCurrentNPUStream(static_cast<c10::DeviceIndex>(device));
  void* raw = stream.stream(false);
  const int threads = at::get_num_threads();
  // In the queue a call waits behind copies and events that were asked for before it.
  at_npu::native::OpCommand::RunOpApiV2(name, [=, work = std::move(work), used = std::move(used)]() -> int {
    return launch(raw, name, work, used, threads);
  });
}

namespace {
at::ScalarType dtype_of(int dtype) {
  switch (dtype) {
    case ACL_FLOAT:
      return at::kFloat;
    case ACL_FLOAT16:
      return at::kHalf;
    case ACL_INT8:
      return at::kChar;
    case ACL_INT32:
      return at::kInt;
    case ACL_UINT8:
      return at::kByte;
    case ACL_INT16:
      return at::kShort;
    case ACL_UINT16:
      return at::kUInt16;
    case ACL_UINT32:
      return at::kUInt32;
    case ACL_INT64:
      return at::kLong;
    case ACL_UINT64:
      return at::kUInt64;
    case ACL_DOUBLE:
      return at::kDouble;
    case ACL_BOOL:
      return at::kBool;
    case ACL_COMPLEX64:
      return at::kComplexFloat;
    case ACL_COMPLEX128:
      return at::kComplexDouble;
    case ACL_COMPLEX32:
      return at::kComplexHalf;
    case ACL_BF16:
      return at::kBFloat16;
    case ACL_FLOAT8_E5M2:
      return at::kFloat8_e5m2;
    case ACL_FLOAT8_E4M3FN:
      return at::kFloat8_e4m3fn;
    default:
      TORCH_CHECK(false, "aclDataType ", dtype, " is not emulated");
  }
}

Place place_of(const ascsim_view& view) {
  const auto dtype = dtype_of(view.dtype);
  const size_t item = c10::elementSize(dtype);
  size_t reach = 1;
  for (size_t d = 0; d < view.dimensions; ++d) {
    if (view.sizes[d] == 0)
      return {view.data,
              {view.sizes, view.sizes + view.dimensions},
              {view.strides, view.strides + view.dimensions},
              dtype,
              false,
              false,
              0};
    reach += static_cast<size_t>((view.sizes[d] - 1) * view.strides[d]);
  }
  return {static_cast<char*>(view.data) + static_cast<size_t>(view.offset) * item,
          {view.sizes, view.sizes + view.dimensions},
          {view.strides, view.strides + view.dimensions},
          dtype,
          false,
          false,
          reach * item};
}

int copy(void* stream, const ascsim_view* to, const ascsim_view* from) {
  const Place there = place_of(*to), here = place_of(*from);
  return launch(
      stream, "aclnnInplaceCopy", [=] { there.on_host().copy_(here.on_host()); }, {there, here}, at::get_num_threads());
}
}  // namespace

void copies() {
  ascsim_set_copy(copy);
}

void synchronize(int device) {
  c10_npu::getCurrentNPUStream(static_cast<c10::DeviceIndex>(device)).synchronize();
}

bool capturing(int) {
  return c10_npu::currentStreamCaptureStatusMayInitCtx() != c10_npu::CaptureStatus::None;
}

}  // namespace sim
