// Communicators between processes of one host: how ranks meet, and what a communicator says of itself.
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include "hccl.h"

namespace sim::hccl {

Communicators& communicators() {
  static auto* held = new Communicators;
  return *held;
}

HcclResult refuse(HcclResult result, const char* format, ...) {
  char text[2048];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  fail(ACL_ERROR_RT_PARAM_INVALID, "%s", text);
  return result;
}

Held held_by(HcclComm handle, const char* function) {
  std::lock_guard<std::mutex> lock(communicators().m);
  auto it = communicators().live.find(handle);
  if (it != communicators().live.end())
    return it->second;
  refuse(HCCL_E_PTR, "%s: %p is no communicator, or was destroyed", function, handle);
  return nullptr;
}

namespace {
constexpr char ROOT[] = "ascend-sim hccl ";

std::string hex(uint64_t value) {
  char text[17];
  snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string digest(const std::string& text) {
  uint64_t a = 14695981039346656037u, b = 1099511628211u;
  for (const char c : text) {
    a = (a ^ static_cast<unsigned char>(c)) * 1099511628211u;
    b = (b + static_cast<unsigned char>(c)) * 6364136223846793005u + 1442695040888963407u;
  }
  return hex(a) + hex(b);
}

HcclResult create(const std::string& meeting, uint32_t rank, uint32_t ranks, const HcclCommConfig* config,
                  const char* function, HcclComm* out) {
  const int device = current_device();
  if (out == nullptr)
    return refuse(HCCL_E_PTR, "%s: expected where to put the communicator", function);
  if (rank >= ranks)
    return refuse(HCCL_E_PARA, "%s: rank %u of %u", function, rank, ranks);
  if (device < 0)
    return refuse(HCCL_E_RUNTIME, "%s: this thread has no device: call aclrtSetDevice first", function);
  std::string group = config != nullptr && config->hcclCommName[0] != 0 ? config->hcclCommName : "";
  if (group.empty())
    group = "hccl_" + meeting.substr(0, 12);
  WithoutPython none;
  try {
    auto made = std::make_shared<Communicator>(meeting, group, rank, ranks, device);
    if (config != nullptr && config->hcclExecTimeOut > 0)
      made->links.patience = config->hcclExecTimeOut;
    std::lock_guard<std::mutex> lock(communicators().m);
    *out = made.get();
    communicators().live[made.get()] = std::move(made);
    return HCCL_SUCCESS;
  } catch (const Failure& failure) {
    return refuse(failure.result, "%s: %s", function, failure.text.c_str());
  }
}

HcclResult create_from_root(const HcclRootInfo* root, uint32_t rank, uint32_t ranks, const HcclCommConfig* config,
                            const char* function, HcclComm* out) {
  if (root == nullptr)
    return refuse(HCCL_E_PTR, "%s: expected what HcclGetRootInfo filled", function);
  if (strncmp(root->internal, ROOT, sizeof ROOT - 1) != 0)
    return refuse(HCCL_E_PARA, "%s: the root info is not one of HcclGetRootInfo's", function);
  return create(root->internal + sizeof ROOT - 1, rank, ranks, config, function, out);
}

// A rank table is JSON; of interest is how many ranks it names, once each.
HcclResult create_from_table(const char* path, uint32_t rank, const HcclCommConfig* config, const char* function,
                             HcclComm* out) {
  std::ifstream file(path == nullptr ? "" : path);
  if (!file)
    return refuse(HCCL_E_OPEN_FILE_FAILURE, "%s: can't read the rank table %s", function, path == nullptr ? "" : path);
  std::stringstream read;
  read << file.rdbuf();
  const std::string text = read.str(), key = "\"rank_id\"";
  std::set<unsigned long> found;
  for (size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1)) {
    const size_t value = text.find_first_of("0123456789", at);
    if (value != std::string::npos)
      found.insert(strtoul(text.c_str() + value, nullptr, 10));
  }
  if (found.empty())
    return refuse(HCCL_E_PARA, "%s: no \"rank_id\" in the rank table %s", function, path);
  const std::string name = config != nullptr ? config->hcclCommName : "";
  return create(digest("table " + text + " " + name), rank, static_cast<uint32_t>(found.size()), config, function, out);
}
}  // namespace

}  // namespace sim::hccl

using namespace sim;
using namespace sim::hccl;

EXPORT HcclResult HcclGetRootInfo(HcclRootInfo* root) {
  API(HcclGetRootInfo);
  if (root == nullptr)
    return refuse(HCCL_E_PTR, "HcclGetRootInfo: expected where to put it");
  std::random_device random;
  const auto word = [&] { return static_cast<uint64_t>(random()) << 32 | random(); };
  memset(root, 0, sizeof *root);
  snprintf(root->internal, sizeof root->internal, "%s%s%s", ROOT, hex(word()).c_str(), hex(word()).c_str());
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo* root, uint32_t rank, HcclComm* comm) {
  API(HcclCommInitRootInfo);
  return create_from_root(root, rank, ranks, nullptr, "HcclCommInitRootInfo", comm);
}

EXPORT HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                                             const HcclCommConfig* config, HcclComm* comm) {
  API(HcclCommInitRootInfoConfig);
  return create_from_root(root, rank, ranks, config, "HcclCommInitRootInfoConfig", comm);
}

EXPORT HcclResult HcclCommInitClusterInfo(const char* table, uint32_t rank, HcclComm* comm) {
  API(HcclCommInitClusterInfo);
  return create_from_table(table, rank, nullptr, "HcclCommInitClusterInfo", comm);
}

EXPORT HcclResult HcclCommInitClusterInfoConfig(const char* table, uint32_t rank, HcclCommConfig* config,
                                                HcclComm* comm) {
  API(HcclCommInitClusterInfoConfig);
  return create_from_table(table, rank, config, "HcclCommInitClusterInfoConfig", comm);
}

EXPORT HcclResult HcclCreateSubCommConfig(HcclComm* comm, uint32_t count, uint32_t* rank_ids, uint64_t id,
                                          uint32_t rank, HcclCommConfig* config, HcclComm* out) {
  API(HcclCreateSubCommConfig);
  if (comm == nullptr || out == nullptr)
    return refuse(HCCL_E_PTR, "HcclCreateSubCommConfig: expected a communicator, and where to put the new one");
  const Held whole = held_by(*comm, "HcclCreateSubCommConfig");
  if (!whole)
    return HCCL_E_PTR;
  *out = nullptr;
  if (count == 0 || rank_ids == nullptr)
    return HCCL_SUCCESS;  // this rank has no part in it
  std::string name = whole->meeting + " " + std::to_string(id);
  for (uint32_t i = 0; i < count; ++i)
    name += " " + std::to_string(rank_ids[i]);
  return create(digest(name), rank, count, config, "HcclCreateSubCommConfig", out);
}

EXPORT HcclResult HcclCommInitAll(uint32_t count, int32_t* devices, HcclComm* comms) {
  API(HcclCommInitAll);
  HcclRootInfo root;
  if (const HcclResult failed = HcclGetRootInfo(&root))
    return failed;
  std::vector<std::thread> threads;
  std::vector<HcclResult> results(count, HCCL_SUCCESS);
  std::vector<std::string> texts(count);
  WithoutPython none;
  for (uint32_t rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      results[rank] = aclrtSetDevice(devices[rank]) != 0
                          ? HCCL_E_RUNTIME
                          : create_from_root(&root, rank, count, nullptr, "HcclCommInitAll", &comms[rank]);
      if (results[rank] != HCCL_SUCCESS)
        texts[rank] = aclGetRecentErrMsg();
    });
  }
  for (auto& thread : threads)
    thread.join();
  for (uint32_t rank = 0; rank < count; ++rank) {
    if (results[rank] != HCCL_SUCCESS)
      return refuse(results[rank], "%s", texts[rank].c_str());
  }
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclCommDestroy(HcclComm handle) {
  API(HcclCommDestroy);
  const Held comm = held_by(handle, "HcclCommDestroy");
  if (!comm)
    return HCCL_E_PTR;
  {
    std::lock_guard<std::mutex> lock(communicators().m);
    communicators().live.erase(handle);
  }
  comm->links.leave();
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetCommName(HcclComm handle, char* name) {
  API(HcclGetCommName);
  const Held comm = held_by(handle, "HcclGetCommName");
  if (!comm || name == nullptr)
    return HCCL_E_PTR;
  snprintf(name, COMM_NAME_MAX_LENGTH, "%s", comm->links.group.c_str());
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetRankSize(HcclComm handle, uint32_t* ranks) {
  API(HcclGetRankSize);
  const Held comm = held_by(handle, "HcclGetRankSize");
  if (!comm || ranks == nullptr)
    return HCCL_E_PTR;
  *ranks = comm->links.ranks;
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetRankId(HcclComm handle, uint32_t* rank) {
  API(HcclGetRankId);
  const Held comm = held_by(handle, "HcclGetRankId");
  if (!comm || rank == nullptr)
    return HCCL_E_PTR;
  *rank = comm->links.rank;
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclCommSuspend(HcclComm handle) {
  API(HcclCommSuspend);
  const Held comm = held_by(handle, "HcclCommSuspend");
  if (!comm)
    return HCCL_E_PTR;
  comm->suspended = true;
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclCommResume(HcclComm handle) {
  API(HcclCommResume);
  const Held comm = held_by(handle, "HcclCommResume");
  if (!comm)
    return HCCL_E_PTR;
  if (comm->broken) {
    return refuse(HCCL_E_NOT_SUPPORT, "HcclCommResume: a call of group %s failed: it has to be made again",
                  comm->links.group.c_str());
  }
  comm->suspended = false;
  return HCCL_SUCCESS;
}

// --- what it says of itself

EXPORT HcclResult HcclGetCommAsyncError(HcclComm handle, HcclResult* error) {
  API(HcclGetCommAsyncError);
  const Held comm = held_by(handle, "HcclGetCommAsyncError");
  if (!comm || error == nullptr)
    return HCCL_E_PTR;
  *error = comm->broken ? comm->why.result : HCCL_SUCCESS;
  if (comm->broken && !comm->told.exchange(true))  // torch_npu's watchdog ends the process, and does not say why
    fprintf(stderr, "ascend-sim: %s\n", comm->why.text.c_str());
  return HCCL_SUCCESS;
}

EXPORT const char* HcclGetErrorString(HcclResult code) {
  API(HcclGetErrorString);
  static const char* texts[] = {"no error",
                                "parameter error",
                                "empty pointer",
                                "memory error",
                                "internal error",
                                "not supported",
                                "not found",
                                "resource unavailable",
                                "system call failed",
                                "timeout",
                                "a file can't be opened",
                                "TCP connection failed",
                                "RoCE connection failed",
                                "TCP transfer failed",
                                "RoCE transfer failed",
                                "a call of the runtime failed",
                                "a call of the driver failed",
                                "a call of the profiler failed",
                                "a call of CCE failed",
                                "a call of the network failed",
                                "try again",
                                "another rank failed",
                                "the communicator is suspended",
                                "a retry failed",
                                "out of memory"};
  return static_cast<size_t>(code) < std::size(texts) ? texts[code] : "unknown error";
}

EXPORT uint32_t HcclGetCommConfigCapability() {
  API(HcclGetCommConfigCapability);
  return HCCL_COMM_CONFIG_RESERVED;  // all of the header's
}

namespace {
std::map<int, int32_t>& settings() {
  static auto* held = new std::map<int, int32_t>;
  return *held;
}
}  // namespace

// Results are deterministic, whatever is asked for.
EXPORT HcclResult HcclSetConfig(HcclConfig config, HcclConfigValue value) {
  API(HcclSetConfig);
  std::lock_guard<std::mutex> lock(communicators().m);
  settings()[config] = value.value;
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGetConfig(HcclConfig config, HcclConfigValue* value) {
  API(HcclGetConfig);
  if (value == nullptr)
    return refuse(HCCL_E_PTR, "HcclGetConfig: expected where to put the value");
  std::lock_guard<std::mutex> lock(communicators().m);
  value->value = settings()[config];
  return HCCL_SUCCESS;
}
