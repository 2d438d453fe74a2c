// libatb.so: what torch_npu's own library for the atb:: ops is linked to, so that it loads and defines their schemas.
// Their kernels are taken over (kernels/reference.cpp): nothing here is meant to be called.
namespace atb {

class Context;
class Operation;
struct Tensor;

namespace {
constexpr int kUnsupported = 1;  // ERROR_INVALID_PARAM of atb's types.h
}

#define EXPORT __attribute__((visibility("default")))

EXPORT int CreateContext(Context** context) {
  *context = nullptr;
  return kUnsupported;
}

EXPORT int DestroyContext(Context*) {
  return 0;
}

EXPORT int DestroyOperation(Operation*) {
  return 0;
}

class EXPORT Utils {
 public:
  static unsigned long GetTensorSize(const Tensor&);
};
unsigned long Utils::GetTensorSize(const Tensor&) {
  return 0;
}

template <typename Parameters>
EXPORT int CreateOperation(const Parameters&, Operation** operation) {
  *operation = nullptr;
  return kUnsupported;
}

namespace infer {
struct ElewiseParam;
struct GroupTopkParam;
struct LinearParam;
struct PagedAttentionParam;
struct ReshapeAndCacheParam;
struct RmsNormParam;
struct RopeParam;
struct SelfAttentionParam;
}  // namespace infer

template EXPORT int CreateOperation(const infer::ElewiseParam&, Operation**);
template EXPORT int CreateOperation(const infer::GroupTopkParam&, Operation**);
template EXPORT int CreateOperation(const infer::LinearParam&, Operation**);
template EXPORT int CreateOperation(const infer::PagedAttentionParam&, Operation**);
template EXPORT int CreateOperation(const infer::ReshapeAndCacheParam&, Operation**);
template EXPORT int CreateOperation(const infer::RmsNormParam&, Operation**);
template EXPORT int CreateOperation(const infer::RopeParam&, Operation**);
template EXPORT int CreateOperation(const infer::SelfAttentionParam&, Operation**);

}  // namespace atb
