// Devices and contexts, and what the runtime says about itself: the chip, its cores, versions, limits.
#include <dlfcn.h>
#include <unistd.h>

#include <cstring>

#include "core.h"
#include "sim.h"

namespace sim {

namespace {
thread_local int device = -1;
std::atomic<bool> ready{false};

// A context is its device: there is one of each.
struct Context {
  int device;
};
Context* context_of(int id) {
  static auto* held = [] {
    auto* all = new std::vector<Context>;
    for (int i = 0; i < config().devices; ++i)
      all->push_back({i});
    return all;
  }();
  return &(*held)[static_cast<size_t>(id)];
}

constexpr int CUBE_CORES = 24, VECTOR_CORES = 48;

bool known(int id) {
  return id >= 0 && id < config().devices;
}
aclError no_device(const char* function, int id) {
  return fail(ACL_ERROR_RT_INVALID_DEVICEID, "%s: no device %d, there are %d (ASCEND_SIM_DEVICES)", function, id,
              config().devices);
}

struct Limits {
  std::mutex m;
  std::map<std::pair<int, int>, uint32_t> set;  // device, type
};
Limits& limits() {
  static auto* held = new Limits;
  return *held;
}
uint32_t cores(int type) {
  return type == ACL_RT_DEV_RES_CUBE_CORE ? CUBE_CORES : VECTOR_CORES;
}
uint32_t limit_of(int id, int type) {
  std::lock_guard<std::mutex> lock(limits().m);
  auto it = limits().set.find({id, type});
  return it == limits().set.end() ? cores(type) : it->second;
}
thread_local std::map<int, uint32_t> in_thread;
}  // namespace

int current_device() {
  return device;
}
void use_device(int id) {
  device = id;
}

// Python's functions are found at run time: the emulation also runs in programs without it.
WithoutPython::WithoutPython() {
  static auto* held = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
  static auto* save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
  static auto* alive = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
  if (held != nullptr && save != nullptr && alive != nullptr && alive() != 0 && held() != 0)
    state = save();
}

WithoutPython::~WithoutPython() {
  static auto* restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
  if (state != nullptr)
    restore(state);
}

}  // namespace sim

using namespace sim;

EXPORT aclError aclInit(const char*) {
  API(aclInit);
  if (ready.exchange(true))
    return fail(ACL_ERROR_REPEAT_INITIALIZE, "aclInit: called before");
  return ACL_SUCCESS;
}

EXPORT aclError aclFinalize() {
  API(aclFinalize);
  if (!ready.exchange(false))
    return fail(ACL_ERROR_REPEAT_FINALIZE, "aclFinalize: called before");
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetDevice(int32_t id) {
  API(aclrtSetDevice);
  if (!known(id))
    return no_device("aclrtSetDevice", id);
  use_device(id);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtResetDevice(int32_t id) {
  API(aclrtResetDevice);
  if (!known(id))
    return no_device("aclrtResetDevice", id);
  return ACL_SUCCESS;  // the process goes on to use what it has; memory is given back at its end
}

EXPORT aclError aclrtGetDevice(int32_t* id) {
  API(aclrtGetDevice);
  if (current_device() < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "aclrtGetDevice: this thread has no device");
  *id = current_device();
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetDeviceCount(uint32_t* count) {
  API(aclrtGetDeviceCount);
  *count = static_cast<uint32_t>(config().devices);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetCurrentContext(aclrtContext* context) {
  API(aclrtGetCurrentContext);
  if (current_device() < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "aclrtGetCurrentContext: this thread has no device");
  *context = context_of(current_device());
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetCurrentContext(aclrtContext context) {
  API(aclrtSetCurrentContext);
  if (context == nullptr)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "aclrtSetCurrentContext: no context");
  use_device(static_cast<Context*>(context)->device);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetPrimaryCtxState(int32_t id, uint32_t* flags, int32_t* active) {
  API(aclrtGetPrimaryCtxState);
  if (!known(id))
    return no_device("aclrtGetPrimaryCtxState", id);
  if (flags != nullptr)
    *flags = 0;
  if (active != nullptr)
    *active = current_device() == id ? 1 : 0;
  return ACL_SUCCESS;
}

EXPORT const char* aclrtGetSocName() {
  API(aclrtGetSocName);
  return config().soc.c_str();
}

EXPORT aclError aclGetDeviceCapability(uint32_t id, aclDeviceInfo info, int64_t* value) {
  API(aclGetDeviceCapability);
  if (!known(static_cast<int>(id)))
    return no_device("aclGetDeviceCapability", static_cast<int>(id));
  switch (info) {
    case ACL_DEVICE_INFO_AI_CORE_NUM:
      *value = CUBE_CORES;
      return ACL_SUCCESS;
    case ACL_DEVICE_INFO_VECTOR_CORE_NUM:
      *value = VECTOR_CORES;
      return ACL_SUCCESS;
    case ACL_DEVICE_INFO_L2_SIZE:
      *value = 192 << 20;
      return ACL_SUCCESS;
    default:
      return fail(ACL_ERROR_INVALID_PARAM, "aclGetDeviceCapability: unknown item %d", static_cast<int>(info));
  }
}

EXPORT aclError aclrtGetDeviceInfo(uint32_t id, aclrtDevAttr attribute, int64_t* value) {
  API(aclrtGetDeviceInfo);
  if (!known(static_cast<int>(id)))
    return no_device("aclrtGetDeviceInfo", static_cast<int>(id));
  switch (attribute) {
    case ACL_DEV_ATTR_AICPU_CORE_NUM:
      *value = 6;
      return ACL_SUCCESS;
    case ACL_DEV_ATTR_AICORE_CORE_NUM:
    case ACL_DEV_ATTR_CUBE_CORE_NUM:
      *value = CUBE_CORES;
      return ACL_SUCCESS;
    case ACL_DEV_ATTR_VECTOR_CORE_NUM:
      *value = VECTOR_CORES;
      return ACL_SUCCESS;
    case ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE:
      *value = static_cast<int64_t>(config().hbm);
      return ACL_SUCCESS;
    case ACL_DEV_ATTR_L2_CACHE_SIZE:
      *value = 192 << 20;
      return ACL_SUCCESS;
    case ACL_DEV_ATTR_IS_VIRTUAL:
      *value = 1;
      return ACL_SUCCESS;
    default:
      *value = 0;
      return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "aclrtGetDeviceInfo: item %d", static_cast<int>(attribute));
  }
}

EXPORT aclError aclGetCannAttributeList(const aclCannAttr** list, size_t* count) {
  API(aclGetCannAttributeList);
  static const aclCannAttr known[] = {ACL_CANN_ATTR_INF_NAN, ACL_CANN_ATTR_BF16, ACL_CANN_ATTR_JIT_COMPILE};
  *list = known;
  *count = 3;
  return ACL_SUCCESS;
}

EXPORT aclError aclGetCannAttribute(aclCannAttr attribute, int32_t* value) {
  API(aclGetCannAttribute);
  *value = attribute == ACL_CANN_ATTR_JIT_COMPILE ? 0 : 1;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceGetUuid(int32_t id, aclrtUuid* uuid) {
  API(aclrtDeviceGetUuid);
  if (!known(id))
    return no_device("aclrtDeviceGetUuid", id);
  memset(uuid->bytes, 0, sizeof uuid->bytes);
  snprintf(uuid->bytes, sizeof uuid->bytes, "sim-%d", id & 0xff);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceGetBareTgid(int32_t* pid) {
  API(aclrtDeviceGetBareTgid);
  *pid = getpid();
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetDeviceUtilizationRate(int32_t id, aclrtUtilizationInfo* info) {
  API(aclrtGetDeviceUtilizationRate);
  if (!known(id))
    return no_device("aclrtGetDeviceUtilizationRate", id);
  info->cubeUtilization = info->vectorUtilization = info->aicpuUtilization = 0;
  info->memoryUtilization = 0;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  API(aclrtDeviceCanAccessPeer);
  *can = 1;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) {
  API(aclrtDeviceEnablePeerAccess);
  return ACL_SUCCESS;
}

// --- cores: remembered, and without effect

EXPORT aclError aclrtGetDeviceResLimit(int32_t id, aclrtDevResLimitType type, uint32_t* value) {
  API(aclrtGetDeviceResLimit);
  *value = limit_of(id, type);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetDeviceResLimit(int32_t id, aclrtDevResLimitType type, uint32_t value) {
  API(aclrtSetDeviceResLimit);
  std::lock_guard<std::mutex> lock(limits().m);
  limits().set[{id, type}] = value;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtResetDeviceResLimit(int32_t id) {
  API(aclrtResetDeviceResLimit);
  std::lock_guard<std::mutex> lock(limits().m);
  limits().set.erase({id, ACL_RT_DEV_RES_CUBE_CORE});
  limits().set.erase({id, ACL_RT_DEV_RES_VECTOR_CORE});
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetStreamResLimit(aclrtStream handle, aclrtDevResLimitType type, uint32_t* value) {
  API(aclrtGetStreamResLimit);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(limits().m);
  auto it = stream->limits.find(type);
  *value = it == stream->limits.end() ? cores(type) : it->second;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetStreamResLimit(aclrtStream handle, aclrtDevResLimitType type, uint32_t value) {
  API(aclrtSetStreamResLimit);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(limits().m);
  stream->limits[type] = value;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtResetStreamResLimit(aclrtStream handle) {
  API(aclrtResetStreamResLimit);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(limits().m);
  stream->limits.clear();
  return ACL_SUCCESS;
}

EXPORT aclError aclrtUseStreamResInCurrentThread(aclrtStream handle) {
  API(aclrtUseStreamResInCurrentThread);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(limits().m);
  in_thread = stream->limits;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtUnuseStreamResInCurrentThread(aclrtStream) {
  API(aclrtUnuseStreamResInCurrentThread);
  in_thread.clear();
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t* value) {
  API(aclrtGetResInCurrentThread);
  auto it = in_thread.find(type);
  *value = it == in_thread.end() ? cores(type) : it->second;
  return ACL_SUCCESS;
}

// --- what has no effect here

EXPORT aclError aclrtSetOpWaitTimeout(uint32_t) {
  API(aclrtSetOpWaitTimeout);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetOpExecuteTimeOut(uint32_t) {
  API(aclrtSetOpExecuteTimeOut);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetOpExecuteTimeOutV2(uint64_t timeout, uint64_t* actual) {
  API(aclrtSetOpExecuteTimeOutV2);
  if (actual != nullptr)
    *actual = timeout;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) {
  API(aclrtSetDeviceSatMode);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetSysParamOpt(aclSysParamOpt, int64_t) {
  API(aclrtSetSysParamOpt);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtCtxSetSysParamOpt(aclSysParamOpt, int64_t) {
  API(aclrtCtxSetSysParamOpt);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetSysParamOpt(aclSysParamOpt, int64_t* value) {
  API(aclrtGetSysParamOpt);
  *value = 0;
  return ACL_SUCCESS;
}

EXPORT void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}

EXPORT aclError aclmdlInitDump() {
  API(aclmdlInitDump);
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlSetDump(const char*) {
  API(aclmdlSetDump);
  return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "aclmdlSetDump: data dumps are not emulated");
}

EXPORT aclError aclmdlFinalizeDump() {
  API(aclmdlFinalizeDump);
  return ACL_SUCCESS;
}
