// libopapi.so: the aclnn functions that torch_npu calls by itself, not through the dispatcher: copies on the device
// between strides or dtypes, and padding with zeros before a collective. What describes tensors to them is here too.
// All other ops are given to the dispatcher (kernels/fallback.cpp).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "acl/acl.h"
#include "sim.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct aclTensor {
  std::vector<int64_t> sizes, strides;
  aclDataType dtype;
  int64_t offset;  // elements
  void* data;
};
struct aclIntArray {
  std::vector<int64_t> values;
};
struct aclScalar {
  std::vector<unsigned char> bytes;
};
struct aclOpExecutor {
  std::function<aclError(aclrtStream)> run;
};

namespace {
ascsim_copy_function copier = nullptr;
}

EXPORT void ascsim_set_copy(ascsim_copy_function function) {
  copier = function;
}

EXPORT aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t count, aclDataType dtype, const int64_t* strides,
                                  int64_t offset, aclFormat, const int64_t*, uint64_t, void* data) {
  return new aclTensor{{sizes, sizes + count}, {strides, strides + count}, dtype, offset, data};
}

EXPORT aclError aclDestroyTensor(const aclTensor* tensor) {
  delete tensor;
  return 0;
}

EXPORT aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return new aclIntArray{{values, values + count}};
}

EXPORT aclError aclDestroyIntArray(const aclIntArray* array) {
  delete array;
  return 0;
}

EXPORT aclScalar* aclCreateScalar(const void* value, aclDataType dtype) {
  const auto* bytes = static_cast<const unsigned char*>(value);
  return new aclScalar{{bytes, bytes + aclDataTypeSize(dtype)}};
}

EXPORT aclError aclDestroyScalar(const aclScalar* scalar) {
  delete scalar;
  return 0;
}

namespace {
aclError copy(const aclTensor& to, const aclTensor& from, aclrtStream stream) {
  const auto view = [](const aclTensor& t) {
    return ascsim_view{t.data, t.sizes.data(), t.strides.data(), t.sizes.size(), static_cast<int>(t.dtype), t.offset};
  };
  const ascsim_view target = view(to), source = view(from);
  return copier == nullptr ? ACL_ERROR_UNINITIALIZE : copier(stream, &target, &source);
}

// In two calls, as all aclnn functions: the first says how much memory the second needs, here never any.
aclError plan(uint64_t* workspace, aclOpExecutor** executor, std::function<aclError(aclrtStream)> run) {
  *workspace = 0;
  *executor = new aclOpExecutor{std::move(run)};
  return 0;
}

aclError run(aclOpExecutor* executor, aclrtStream stream) {
  const std::unique_ptr<aclOpExecutor> held(executor);
  return held->run(stream);
}
}  // namespace

EXPORT aclError aclnnInplaceCopyGetWorkspaceSize(aclTensor* to, const aclTensor* from, uint64_t* workspace,
                                                 aclOpExecutor** executor) {
  return plan(workspace, executor, [to = *to, from = *from](aclrtStream stream) { return copy(to, from, stream); });
}
EXPORT aclError aclnnInplaceCopy(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
  return run(executor, stream);
}

EXPORT aclError aclnnCastGetWorkspaceSize(const aclTensor* from, aclDataType, aclTensor* to, uint64_t* workspace,
                                          aclOpExecutor** executor) {
  return plan(workspace, executor, [to = *to, from = *from](aclrtStream stream) { return copy(to, from, stream); });
}
EXPORT aclError aclnnCast(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
  return run(executor, stream);
}

EXPORT aclError aclnnConstantPadNdGetWorkspaceSize(const aclTensor* from, const aclIntArray* pad,
                                                   const aclScalar* value, aclTensor* to, uint64_t* workspace,
                                                   aclOpExecutor** executor) {
  const auto is_set = [](unsigned char byte) { return byte != 0; };
  const auto is_negative = [](int64_t width) { return width < 0; };
  if (std::any_of(value->bytes.begin(), value->bytes.end(), is_set) ||
      std::any_of(pad->values.begin(), pad->values.end(), is_negative)) {
    return ACL_ERROR_INVALID_PARAM;  // torch_npu itself only adds zeros
  }
  aclTensor inside = *to;  // the place of what is padded; widths come last dimension first, before and behind
  inside.sizes = from->sizes;
  for (size_t i = 0; i < pad->values.size() / 2; ++i)
    inside.offset += pad->values[2 * i] * inside.strides[inside.strides.size() - 1 - i];
  size_t bytes = aclDataTypeSize(to->dtype);
  for (const int64_t size : to->sizes)
    bytes *= static_cast<size_t>(size);
  void* start = static_cast<char*>(to->data) + static_cast<size_t>(to->offset) * aclDataTypeSize(to->dtype);
  return plan(workspace, executor, [start, bytes, inside, from = *from](aclrtStream stream) {
    const aclError refused = aclrtMemsetAsync(start, bytes, 0, bytes, stream);
    return refused != 0 ? refused : copy(inside, from, stream);
  });
}
EXPORT aclError aclnnConstantPadNd(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
  return run(executor, stream);
}

namespace {
// As many dimensions as another tensor has; those of size 1 are read again and again.
aclTensor stretched(aclTensor t, const aclTensor& to) {
  while (t.sizes.size() < to.sizes.size()) {
    t.sizes.insert(t.sizes.begin(), 1);
    t.strides.insert(t.strides.begin(), 0);
  }
  for (size_t d = 0; d < t.sizes.size(); ++d) {
    if (t.sizes[d] == 1 && to.sizes[d] != 1) {
      t.sizes[d] = to.sizes[d];
      t.strides[d] = 0;
    }
  }
  return t;
}
}  // namespace

// Lazily conjugated tensors are copied by way of it.
EXPORT aclError aclnnComplexGetWorkspaceSize(const aclTensor* real, const aclTensor* imaginary, aclTensor* to,
                                             uint64_t* workspace, aclOpExecutor** executor) {
  aclTensor part = *to;  // the real parts; the imaginary ones lie behind them
  part.dtype = real->dtype;
  part.offset *= 2;
  for (auto& stride : part.strides)
    stride *= 2;
  return plan(workspace, executor,
              [part, r = stretched(*real, part), i = stretched(*imaginary, part)](aclrtStream stream) {
                const aclError refused = copy(part, r, stream);
                aclTensor behind = part;
                ++behind.offset;
                return refused != 0 ? refused : copy(behind, i, stream);
              });
}
EXPORT aclError aclnnComplex(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
  return run(executor, stream);
}

EXPORT aclError aclDestroyAclOpExecutor(aclOpExecutor* executor) {
  delete executor;
  return 0;
}
