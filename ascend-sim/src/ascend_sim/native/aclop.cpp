// Ops by their name ("aclop"), the old way, which torch_npu still goes when it changes a tensor's format. Formats are
// labels here, memory is always in plain order: so these are copies. Any other op is refused by its name.
#include <cstring>

#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "core.h"

struct aclDataBuffer {
  void* data;
  size_t size;
};
struct aclTensorDesc {
  aclDataType dtype;
  aclFormat format;
  std::vector<int64_t> sizes;
};
struct aclopAttr {
  int nothing;
};

using namespace sim;

EXPORT size_t aclDataTypeSize(aclDataType dtype) {
  switch (dtype) {
    case ACL_COMPLEX128:
      return 16;
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_DOUBLE:
    case ACL_COMPLEX64:
      return 8;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32:
    case ACL_COMPLEX32:
      return 4;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16:
      return 2;
    default:
      return 1;
  }
}

EXPORT aclDataBuffer* aclCreateDataBuffer(void* data, size_t size) {
  return new aclDataBuffer{data, size};
}
EXPORT aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete buffer;
  return ACL_SUCCESS;
}
EXPORT aclTensorDesc* aclCreateTensorDesc(aclDataType dtype, int count, const int64_t* sizes, aclFormat format) {
  return new aclTensorDesc{dtype, format, {sizes, sizes + count}};
}
EXPORT void aclDestroyTensorDesc(const aclTensorDesc* desc) {
  delete desc;
}
EXPORT aclDataType aclGetTensorDescType(const aclTensorDesc* desc) {
  return desc->dtype;
}
EXPORT aclFormat aclGetTensorDescFormat(const aclTensorDesc* desc) {
  return desc->format;
}
EXPORT size_t aclGetTensorDescNumDims(const aclTensorDesc* desc) {
  return desc->sizes.size();
}
EXPORT aclError aclGetTensorDescDimV2(const aclTensorDesc* desc, size_t index, int64_t* size) {
  if (index >= desc->sizes.size())
    return fail(ACL_ERROR_INVALID_PARAM, "aclGetTensorDescDimV2: no dimension %zu", index);
  *size = desc->sizes[index];
  return ACL_SUCCESS;
}
EXPORT void aclSetTensorDescName(aclTensorDesc*, const char*) {}
EXPORT aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) {
  return ACL_SUCCESS;
}
EXPORT aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) {
  return ACL_SUCCESS;
}
EXPORT aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) {
  return ACL_SUCCESS;
}

EXPORT aclopAttr* aclopCreateAttr() {
  return new aclopAttr{};
}
EXPORT void aclopDestroyAttr(const aclopAttr* attr) {
  delete attr;
}
EXPORT aclError aclopSetAttrBool(aclopAttr*, const char*, uint8_t) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrFloat(aclopAttr*, const char*, float) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}
EXPORT aclError aclopSetAttrString(aclopAttr*, const char*, const char*) {
  return ACL_SUCCESS;
}

EXPORT aclError aclopCompileAndExecute(const char* type, int inputs, const aclTensorDesc* const[],
                                       const aclDataBuffer* const input[], int outputs, const aclTensorDesc* const[],
                                       aclDataBuffer* const output[], const aclopAttr*, aclopEngineType,
                                       aclopCompileType, const char*, aclrtStream stream) {
  API(aclopCompileAndExecute);
  const std::string name = type;
  if ((name == "Identity" || name == "TransData") && inputs >= 1 && outputs == 1) {
    const size_t bytes = std::min(input[0]->size, output[0]->size);
    auto run = [to = output[0]->data, from = input[0]->data, bytes]() -> Outcome {
      if (memory::device_of(to, bytes) < 0 || memory::device_of(from, bytes) < 0) {
        return {ACL_ERROR_RT_DEVICE_MEM_ERROR, "its memory was freed before it ran"};
      }
      memmove(memory::host(to), memory::host(from), bytes);
      return {};
    };
    return submit(stream, std::make_shared<Task>(Task{Kind::kernel, name, run, 2.0 * static_cast<double>(bytes)}));
  }
  return fail(ACL_ERROR_OP_NOT_FOUND, "the op %s is not emulated: give the ATen op it stands for a kernel", type);
}

EXPORT aclError aclopCompileAndExecuteV2(const char* type, int inputs, aclTensorDesc* input_desc[],
                                         aclDataBuffer* input[], int outputs, aclTensorDesc* output_desc[],
                                         aclDataBuffer* output[], aclopAttr* attr, aclopEngineType engine,
                                         aclopCompileType compile, const char* path, aclrtStream stream) {
  return aclopCompileAndExecute(type, inputs, input_desc, input, outputs, output_desc, output, attr, engine, compile,
                                path, stream);
}
