// libopapi.so: the one aclnn function that torch_npu calls by itself, when it copies on the device between strides or
// dtypes, and what describes tensors to it. All other ops are given to the dispatcher (kernels/fallback.cpp).
#include <cstdint>
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
struct aclOpExecutor {
  aclTensor to, from;
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

EXPORT aclError aclnnInplaceCopyGetWorkspaceSize(aclTensor* to, const aclTensor* from, uint64_t* workspace,
                                                 aclOpExecutor** executor) {
  *workspace = 0;
  *executor = new aclOpExecutor{*to, *from};
  return 0;
}

EXPORT aclError aclnnInplaceCopy(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {
  const std::unique_ptr<aclOpExecutor> held(executor);
  const auto view = [](const aclTensor& t) {
    return ascsim_view{t.data, t.sizes.data(), t.strides.data(), t.sizes.size(), static_cast<int>(t.dtype), t.offset};
  };
  const ascsim_view to = view(held->to), from = view(held->from);
  return copier == nullptr ? ACL_ERROR_UNINITIALIZE : copier(stream, &to, &from);
}

EXPORT aclError aclDestroyAclOpExecutor(aclOpExecutor* executor) {
  delete executor;
  return 0;
}
