// Copies, fills, values and host functions, at once or in a stream's turn.
#include <condition_variable>
#include <cstring>

#include "core.h"

namespace sim {

namespace {
// What is wrong with the two ends of a copy.
aclError check(const char* function, const void* dst, size_t room, const void* src, size_t bytes,
               aclrtMemcpyKind kind) {
  if (bytes > room) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%s: %zu bytes into a place of %zu", function, bytes, room);
  }
  const bool to = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool from = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (kind > ACL_MEMCPY_DEVICE_TO_DEVICE)
    return 0;  // the device finds out where memory lies
  for (auto [address, device, end] : {std::tuple{dst, to, "to"}, std::tuple{src, from, "from"}}) {
    if (device ? memory::device_of(address, bytes) < 0 : memory::is_device(address)) {
      return fail(ACL_ERROR_RT_PARAM_INVALID, "%s %s %p: expected %s memory of %zu bytes", function, end, address,
                  device ? "live device" : "host", bytes);
    }
  }
  return 0;
}

aclError copy_now(const char* function, void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind) {
  if (const aclError refused = refuse_while_capturing(function, nullptr))
    return refused;
  if (const aclError wrong = check(function, dst, room, src, bytes, kind))
    return wrong;
  memmove(memory::host(dst), memory::host(src), bytes);
  return ACL_SUCCESS;
}

aclError copy_later(const char* function, void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind,
                    aclrtStream stream) {
  if (const aclError wrong = check(function, dst, room, src, bytes, kind))
    return wrong;
  auto run = [=] {
    for (const void* end : {static_cast<const void*>(dst), src}) {
      if (memory::is_device(end) && memory::device_of(end, bytes) < 0) {
        return Outcome{ACL_ERROR_RT_DEVICE_MEM_ERROR, "a copy's memory was freed before the copy ran"};
      }
    }
    memmove(memory::host(dst), memory::host(src), bytes);
    return Outcome{};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::copy, "copy", run, 2.0 * static_cast<double>(bytes)}));
}

// Threads that run callbacks, by the number that subscribed them.
struct Reports {
  struct Item {
    aclrtCallback fn;
    void* data;
    std::shared_ptr<std::pair<std::mutex, std::condition_variable>> signal;
    std::shared_ptr<bool> done;
  };
  std::mutex m;
  std::condition_variable come;
  std::map<Stream*, uint64_t> thread_of;
  std::map<uint64_t, std::deque<Item>> waiting;
};
Reports& reports() {
  static auto* held = new Reports;
  return *held;
}
}  // namespace
}  // namespace sim

using namespace sim;

EXPORT aclError aclrtMemcpy(void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind) {
  API(aclrtMemcpy);
  return copy_now("aclrtMemcpy", dst, room, src, bytes, kind);
}

EXPORT aclError aclrtMemcpyAsync(void* dst, size_t room, const void* src, size_t bytes, aclrtMemcpyKind kind,
                                 aclrtStream stream) {
  API(aclrtMemcpyAsync);
  return copy_later("aclrtMemcpyAsync", dst, room, src, bytes, kind, stream);
}

EXPORT aclError aclrtMemset(void* dst, size_t room, int32_t value, size_t bytes) {
  API(aclrtMemset);
  if (const aclError refused = refuse_while_capturing("aclrtMemset", nullptr))
    return refused;
  if (bytes > room || (memory::is_device(dst) && memory::device_of(dst, bytes) < 0)) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemset(%p): expected live memory of %zu bytes", dst, bytes);
  }
  memset(memory::host(dst), value, bytes);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtMemsetAsync(void* dst, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
  API(aclrtMemsetAsync);
  if (bytes > room)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemsetAsync: %zu bytes into %zu", bytes, room);
  auto run = [=] {
    if (memory::is_device(dst) && memory::device_of(dst, bytes) < 0) {
      return Outcome{ACL_ERROR_RT_DEVICE_MEM_ERROR, "memory to fill was freed before"};
    }
    memset(memory::host(dst), value, bytes);
    return Outcome{};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::set, "set", run, static_cast<double>(bytes)}));
}

EXPORT aclError aclrtMemcpyBatch(void** dst, size_t* room, void** src, size_t* bytes, size_t count,
                                 aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed) {
  API(aclrtMemcpyBatch);
  for (size_t i = 0; i < count; ++i) {
    if (failed != nullptr)
      *failed = i;
    if (const aclError wrong = copy_now("aclrtMemcpyBatch", dst[i], room[i], src[i], bytes[i], ACL_MEMCPY_DEFAULT)) {
      return wrong;
    }
  }
  return ACL_SUCCESS;
}

EXPORT aclError aclrtMemcpyBatchAsync(void** dst, size_t* room, void** src, size_t* bytes, size_t count,
                                      aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed, aclrtStream stream) {
  API(aclrtMemcpyBatchAsync);
  for (size_t i = 0; i < count; ++i) {
    if (failed != nullptr)
      *failed = i;
    if (const aclError wrong =
            copy_later("aclrtMemcpyBatchAsync", dst[i], room[i], src[i], bytes[i], ACL_MEMCPY_DEFAULT, stream)) {
      return wrong;
    }
  }
  return ACL_SUCCESS;
}

EXPORT aclError aclrtCmoAsync(void*, size_t, aclrtCmoType, aclrtStream stream) {
  API(aclrtCmoAsync);
  return submit(stream, std::make_shared<Task>(Task{Kind::set, "prefetch", nullptr}));
}

// --- functions of the host

EXPORT aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc fn, void* args) {
  API(aclrtLaunchHostFunc);
  auto run = [fn, args] {
    fn(args);
    return Outcome{};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::host, "host function", run}));
}

EXPORT aclError aclrtSubscribeReport(uint64_t thread, aclrtStream handle) {
  API(aclrtSubscribeReport);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(reports().m);
  if (!reports().thread_of.emplace(stream.get(), thread).second) {
    return fail(ACL_ERROR_RT_STREAM_SUBSCRIBE, "stream %d has a thread for its callbacks already", stream->id);
  }
  return ACL_SUCCESS;
}

EXPORT aclError aclrtUnSubscribeReport(uint64_t, aclrtStream handle) {
  API(aclrtUnSubscribeReport);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(reports().m);
  if (reports().thread_of.erase(stream.get()) == 0) {
    return fail(ACL_ERROR_RT_STREAM_NO_CB_REG, "stream %d has no thread for callbacks", stream->id);
  }
  return ACL_SUCCESS;
}

EXPORT aclError aclrtLaunchCallback(aclrtCallback fn, void* data, aclrtCallbackBlockType block, aclrtStream handle) {
  API(aclrtLaunchCallback);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  uint64_t thread = 0;
  {
    std::lock_guard<std::mutex> lock(reports().m);
    auto it = reports().thread_of.find(stream.get());
    if (it == reports().thread_of.end()) {
      return fail(ACL_ERROR_RT_STREAM_NO_CB_REG, "stream %d has no thread for callbacks", stream->id);
    }
    thread = it->second;
  }
  auto run = [fn, data, block, thread] {
    auto signal = std::make_shared<std::pair<std::mutex, std::condition_variable>>();
    auto done = std::make_shared<bool>(false);
    {
      std::lock_guard<std::mutex> lock(reports().m);
      reports().waiting[thread].push_back({fn, data, signal, done});
    }
    reports().come.notify_all();
    if (block == ACL_CALLBACK_BLOCK) {
      std::unique_lock<std::mutex> lock(signal->first);
      signal->second.wait(lock, [&] { return *done; });
    }
    return Outcome{};
  };
  return submit(handle, std::make_shared<Task>(Task{Kind::host, "callback", run}));
}

EXPORT aclError aclrtProcessReport(int32_t ms) {
  API(aclrtProcessReport);
  const auto self = static_cast<uint64_t>(pthread_self());
  std::unique_lock<std::mutex> lock(reports().m);
  auto& mine = reports().waiting[self];
  if (!reports().come.wait_for(lock, std::chrono::milliseconds(ms < 0 ? 1000 : ms), [&] { return !mine.empty(); })) {
    return ACL_ERROR_RT_REPORT_TIMEOUT;  // the ordinary end of a turn, and no error of the thread
  }
  Reports::Item item = mine.front();
  mine.pop_front();
  lock.unlock();
  item.fn(item.data);
  {
    std::lock_guard<std::mutex> held(item.signal->first);
    *item.done = true;
  }
  item.signal->second.notify_all();
  return ACL_SUCCESS;
}

// --- values in device memory that streams wait for

namespace sim {
namespace {
struct Values {
  std::mutex m;
  std::condition_variable written;
};
Values& values() {
  static auto* held = new Values;
  return *held;
}

bool reached(uint64_t found, uint64_t wanted, uint32_t how) {
  switch (how) {
    case ACL_STREAM_WAIT_VALUE_GEQ:
      return static_cast<int64_t>(found - wanted) >= 0;
    case ACL_STREAM_WAIT_VALUE_EQ:
      return found == wanted;
    case ACL_STREAM_WAIT_VALUE_AND:
      return (found & wanted) != 0;
    default:
      return ~(found | wanted) != 0;
  }
}

aclError check_value(const char* function, void* address) {
  if (memory::device_of(address, sizeof(uint64_t)) >= 0 && reinterpret_cast<uintptr_t>(address) % 8 == 0)
    return 0;
  return fail(ACL_ERROR_RT_PARAM_INVALID, "%s(%p): expected eight aligned bytes of live device memory", function,
              address);
}
}  // namespace
}  // namespace sim

EXPORT aclError aclrtValueWrite(void* address, uint64_t value, uint32_t, aclrtStream stream) {
  API(aclrtValueWrite);
  if (const aclError wrong = check_value("aclrtValueWrite", address))
    return wrong;
  auto run = [=] {
    {
      std::lock_guard<std::mutex> lock(values().m);
      memcpy(memory::host(address), &value, sizeof value);
    }
    values().written.notify_all();
    return Outcome{};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::write_value, "write value", run}));
}

EXPORT aclError aclrtValueWait(void* address, uint64_t value, uint32_t how, aclrtStream stream) {
  API(aclrtValueWait);
  if (const aclError wrong = check_value("aclrtValueWait", address))
    return wrong;
  auto run = [=] {
    std::unique_lock<std::mutex> lock(values().m);
    const auto done = [&] {
      uint64_t found = 0;
      memcpy(&found, memory::host(address), sizeof found);
      return reached(found, value, how);
    };
    while (!done())
      values().written.wait_for(lock, std::chrono::milliseconds(20));  // a copy may have written it
    return Outcome{};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::wait_value, "wait value", run}));
}
