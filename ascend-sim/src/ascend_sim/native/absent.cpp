// Functions that torch_npu's libraries need in order to load, or look up, and that are not emulated: each fails with
// its name. To add one: write it in the file for its concern, with its type from the header, and take it out here.
// This file includes no header of ACL's on purpose: all that is said of a function is its name.
#include <cstddef>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace sim {
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));
}

#define ABSENT(name)                                                                                    \
  EXPORT int name() {                                                                                   \
    return sim::fail(500001, #name " is not emulated: see absent.cpp of ascend-sim for how to add it"); \
  }
#define ABSENT_POINTER(name)                                                                     \
  EXPORT void* name() {                                                                          \
    sim::fail(500001, #name " is not emulated: see absent.cpp of ascend-sim for how to add it"); \
    return nullptr;                                                                              \
  }

// Binaries of kernels, and what launches them
ABSENT(aclrtBinaryGetFunction)
ABSENT(aclrtBinaryLoadFromData)
ABSENT(aclrtGetFunctionAddr)
ABSENT(aclrtGetHardwareSyncAddr)
ABSENT(aclrtLaunchKernelWithHostArgs)
ABSENT(rtDevBinaryRegister)
ABSENT(rtFunctionRegister)
ABSENT(rtGetC2cCtrlAddr)
ABSENT(rtKernelLaunch)

// Memory shared by processes
ABSENT(aclrtIpcMemClose)
ABSENT(aclrtIpcMemGetExportKey)
ABSENT(aclrtIpcMemImportByKey)
ABSENT(aclrtIpcMemSetImportPid)
ABSENT(aclrtMemExportToShareableHandle)
ABSENT(aclrtMemImportFromShareableHandle)
ABSENT(aclrtMemSetPidToShareableHandle)

// Conditions inside a graph
ABSENT(aclmdlRIAddCondTask)
ABSENT(aclmdlRICaptureToModelRIBegin)
ABSENT(aclmdlRICondHandleCreate)
ABSENT(aclmdlRICondHandleGetCondPtr)

// Graphs of an op, and dumps of its arguments
ABSENT(aclGenGraphAndDumpForOp)
ABSENT_POINTER(aclCreateGraphDumpOpt)
ABSENT(aclDestroyGraphDumpOpt)
ABSENT(aclopStartDumpArgs)
ABSENT(aclopStopDumpArgs)

// Options of the op compiler: accepted, and without effect
EXPORT int aclSetCompileopt(int, const char*) {
  return 0;
}
EXPORT size_t aclGetCompileoptSize(int) {
  return 1;
}
EXPORT int aclGetCompileopt(int, char* value, size_t length) {
  if (length > 0)
    *value = 0;
  return 0;
}

// The profiler: nothing is measured
EXPORT uint64_t MsprofGetHashId(const char*, size_t) {
  return 0;
}
EXPORT int MsprofRegisterCallback(uint32_t, void*) {
  return 0;
}
EXPORT int MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) {
  return 0;
}
EXPORT int MsprofReportApi(uint32_t, const void*) {
  return 0;
}
EXPORT int MsprofReportCompactInfo(uint32_t, const void*, uint32_t) {
  return 0;
}
EXPORT uint64_t MsprofSysCycleTime() {
  return 0;
}
