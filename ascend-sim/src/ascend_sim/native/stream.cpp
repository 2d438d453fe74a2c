// Streams: each has a thread that runs its tasks in order, and so goes on while the host does other things.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "core.h"
#include "sim.h"

namespace sim {

namespace {
std::atomic<uint64_t> ended{0};  // tasks of all streams: whether anything moves

struct Streams {
  std::mutex m;
  std::unordered_map<void*, std::shared_ptr<Stream>> live;
  std::map<int, std::shared_ptr<Stream>> standard;  // of each device, for the null handle
  std::map<int, int> slots;                         // taken, by device
  int next = 0;
  std::string fail_name;
  uint64_t fail_at = 0;
};
Streams& streams() {
  static auto* held = new Streams;
  return *held;
}

Outcome told_to_fail(const Task& task) {
  std::lock_guard<std::mutex> lock(streams().m);
  auto& s = streams();
  if (s.fail_at == 0 || task.name.find(s.fail_name) == std::string::npos || --s.fail_at != 0)
    return {};
  return {ACL_ERROR_RT_AICORE_EXCEPTION, "task " + task.name + " failed, as it was told to"};
}
}  // namespace

bool take_slots(int device, int count) {
  std::lock_guard<std::mutex> lock(streams().m);
  int& taken = streams().slots[device];
  if (taken + count > config().streams)
    return false;
  taken += count;
  return true;
}

void give_slots(int device, int count) {
  std::lock_guard<std::mutex> lock(streams().m);
  streams().slots[device] -= count;
}

std::shared_ptr<Stream> stream_of(aclrtStream handle) {
  const int device = current_device();
  std::lock_guard<std::mutex> lock(streams().m);
  if (handle == nullptr) {
    if (device < 0) {
      fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
      return nullptr;
    }
    auto& standard = streams().standard[device];
    if (!standard)
      standard = std::make_shared<Stream>(device, -1 - device);
    return standard;
  }
  auto it = streams().live.find(handle);
  if (it != streams().live.end())
    return it->second;
  fail(ACL_ERROR_RT_PARAM_INVALID, "%p is no stream, or was destroyed", handle);
  return nullptr;
}

std::vector<std::shared_ptr<Stream>> streams_of(int device) {
  std::lock_guard<std::mutex> lock(streams().m);
  std::vector<std::shared_ptr<Stream>> found;
  for (auto& [handle, stream] : streams().live) {
    if (stream->device == device)
      found.push_back(stream);
  }
  auto it = streams().standard.find(device);
  if (it != streams().standard.end())
    found.push_back(it->second);
  return found;
}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> lock(m_);
    stop_ = true;
  }
  wake_.notify_all();
  if (worker_.joinable()) {
    if (worker_.get_id() == std::this_thread::get_id()) {
      worker_.detach();
    } else {
      worker_.join();
    }
  }
}

void Stream::push(TaskPtr task) {
  {
    std::lock_guard<std::mutex> lock(m_);
    queue_.push_back(std::move(task));
    if (!worker_.joinable())
      worker_ = std::thread([this] { work(); });  // most streams are never used
  }
  wake_.notify_one();
}

void Stream::work() {
  use_device(device);
  std::unique_lock<std::mutex> lock(m_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty())
      return;
    TaskPtr task = std::move(queue_.front());
    queue_.pop_front();
    const bool skip = error_.code != 0 && failure_mode == ACL_STOP_ON_FAILURE && task->kind != Kind::record;
    busy_ = true;
    lock.unlock();
    Outcome outcome;
    const double start = std::max(now_, clock::host()) + (task->kind == Kind::execute ? 0 : config().task_launch_us);
    double end = start;
    if (task->kind == Kind::record) {  // before anyone who waits goes on
      std::lock_guard<std::mutex> held(task->event->m);
      task->event->at = end;
    }
    if (!skip) {
      outcome = told_to_fail(*task);
      if (outcome.code == 0 && task->kind == Kind::execute) {
        outcome = task->model->run(device, start, &end);
      } else if (outcome.code == 0) {
        outcome = task->run ? task->run() : Outcome{};
        end = start + cost(*task);
        if (task->kind == Kind::wait) {
          std::lock_guard<std::mutex> held(task->event->m);
          end = std::max(end, task->event->at);
        }
        clock::span(device, id, task->name, start, end);
      }
    }
    task.reset();  // what it holds may take locks
    lock.lock();
    now_ = end;
    busy_ = false;
    if (outcome.code != 0 && error_.code == 0)
      error_ = outcome;
    ++ended_;
    ended.fetch_add(1);
    if (queue_.empty())
      done_.notify_all();
  }
}

bool Stream::idle() {
  std::lock_guard<std::mutex> lock(m_);
  return queue_.empty() && !busy_;
}

Outcome Stream::drain(double timeout_s) {
  WithoutPython none;
  std::unique_lock<std::mutex> lock(m_);
  const auto begin = std::chrono::steady_clock::now();
  auto moved = begin;
  uint64_t before = ended.load();
  while (!(queue_.empty() && !busy_)) {
    done_.wait_for(lock, std::chrono::milliseconds(50));
    const auto now = std::chrono::steady_clock::now();
    if (ended.load() != before)
      before = ended.load(), moved = now;
    if (timeout_s >= 0 && std::chrono::duration<double>(now - begin).count() > timeout_s) {
      return {ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "the stream was not done in time"};
    }
    if (std::chrono::duration<double>(now - moved).count() > config().patience) {
      return {ACL_ERROR_RT_STREAM_SYNC_TIMEOUT,
              "stream " + std::to_string(id) +
                  " waits, and no task of any stream has ended in ASCEND_SIM_PATIENCE: an event it waits for is not "
                  "recorded"};
    }
  }
  clock::wait_until(now_);
  Outcome found;
  std::swap(found, error_);
  return found;
}

aclError submit(aclrtStream handle, TaskPtr task) {
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::unique_lock<std::recursive_mutex> lock(capture_mutex());
  if (stream->updating && task->kind == Kind::kernel) {
    stream->updates.push_back(std::move(task));
    return ACL_SUCCESS;
  }
  if (stream->capture) {
    if (stream->capture->status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE) {
      return fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "%s: the capture is invalid: %s", task->name.c_str(),
                  stream->capture->invalid.c_str());
    }
    const int node = stream->capture->add(stream->lane, std::move(task));
    if (stream->in_group)
      stream->group.push_back(node);
    return ACL_SUCCESS;
  }
  lock.unlock();
  stream->push(std::move(task));
  return ACL_SUCCESS;
}

namespace {
aclError create(aclrtStream* handle) {
  const int device = current_device();
  if (device < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
  if (!take_slots(device, 1)) {
    return fail(ACL_ERROR_RT_NO_STREAM_RESOURCE, "Alloc sq cq fail: all %d streams of the device are in use",
                config().streams);
  }
  std::lock_guard<std::mutex> lock(streams().m);
  auto stream = std::make_shared<Stream>(device, streams().next++);
  *handle = stream.get();
  streams().live[stream.get()] = stream;
  return ACL_SUCCESS;
}

aclError destroy(aclrtStream handle, bool force) {
  auto stream = stream_of(handle);
  if (!stream || handle == nullptr)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "%p is no stream", handle);
  {
    std::lock_guard<std::recursive_mutex> lock(capture_mutex());
    if (stream->capture && !force) {
      return fail(ACL_ERROR_RT_STREAM_CAPTURED, "stream %d is captured and can't be destroyed", stream->id);
    }
  }
  {
    std::lock_guard<std::mutex> lock(streams().m);
    streams().live.erase(handle);
  }
  give_slots(stream->device, 1);
  WithoutPython none;
  stream.reset();  // its thread ends what it has to do
  return ACL_SUCCESS;
}

aclError synchronize(aclrtStream handle, double timeout_s, const char* function) {
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (const aclError refused = refuse_while_capturing(function, stream.get()))
    return refused;
  const Outcome found = stream->drain(timeout_s);
  return found.code == 0 ? ACL_SUCCESS : fail(found.code, "stream %d: %s", stream->id, found.text.c_str());
}

aclError synchronize_device(double timeout_s, const char* function) {
  const int device = current_device();
  if (device < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
  if (const aclError refused = refuse_while_capturing(function, nullptr))
    return refused;
  Outcome first;
  for (auto& stream : streams_of(device)) {
    Outcome found = stream->drain(timeout_s);
    if (first.code == 0)
      first = found;
  }
  return first.code == 0 ? ACL_SUCCESS : fail(first.code, "device %d: %s", device, first.text.c_str());
}
}  // namespace

void stream_usage(int device, ascsim_usage* out) {
  std::lock_guard<std::mutex> lock(streams().m);
  out->streams = static_cast<uint64_t>(
      std::count_if(streams().live.begin(), streams().live.end(), [&](auto& s) { return s.second->device == device; }));
}

}  // namespace sim

using namespace sim;

EXPORT aclError aclrtCreateStream(aclrtStream* handle) {
  API(aclrtCreateStream);
  return create(handle);
}

EXPORT aclError aclrtCreateStreamWithConfig(aclrtStream* handle, uint32_t, uint32_t) {
  API(aclrtCreateStreamWithConfig);
  return create(handle);
}

EXPORT aclError aclrtDestroyStream(aclrtStream handle) {
  API(aclrtDestroyStream);
  return destroy(handle, false);
}

EXPORT aclError aclrtDestroyStreamForce(aclrtStream handle) {
  API(aclrtDestroyStreamForce);
  return destroy(handle, true);
}

EXPORT aclError aclrtSynchronizeStream(aclrtStream handle) {
  API(aclrtSynchronizeStream);
  return synchronize(handle, -1, "aclrtSynchronizeStream");
}

EXPORT aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t ms) {
  API(aclrtSynchronizeStreamWithTimeout);
  return synchronize(handle, ms < 0 ? -1 : ms / 1e3, "aclrtSynchronizeStreamWithTimeout");
}

EXPORT aclError aclrtSynchronizeDevice() {
  API(aclrtSynchronizeDevice);
  return synchronize_device(-1, "aclrtSynchronizeDevice");
}

EXPORT aclError aclrtSynchronizeDeviceWithTimeout(int32_t ms) {
  API(aclrtSynchronizeDeviceWithTimeout);
  return synchronize_device(ms < 0 ? -1 : ms / 1e3, "aclrtSynchronizeDeviceWithTimeout");
}

EXPORT aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
  API(aclrtStreamQuery);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (const aclError refused = refuse_while_capturing("aclrtStreamQuery", stream.get()))
    return refused;
  *status = stream->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  API(aclrtStreamGetId);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  *id = stream->id;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetStreamFailureMode(aclrtStream handle, uint64_t mode) {
  API(aclrtSetStreamFailureMode);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  stream->failure_mode = mode;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) {
  API(aclrtSetStreamOverflowSwitch);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* flag) {
  API(aclrtGetStreamOverflowSwitch);
  *flag = 0;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) {
  API(aclrtSetStreamAttribute);
  return ACL_SUCCESS;
}

EXPORT void ascsim_fail_task(const char* name, uint64_t n) {
  std::lock_guard<std::mutex> lock(streams().m);
  streams().fail_name = name == nullptr ? "" : name;
  streams().fail_at = n;
}
