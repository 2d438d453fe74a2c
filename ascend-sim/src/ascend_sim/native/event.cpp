// Events. A wait waits for the record that came last before it. An external event is a flag that a graph waits for:
// tasks outside the graph set it, and the graph itself takes it back.
#include "core.h"

namespace sim {

namespace {
struct Events {
  std::mutex m;
  std::unordered_map<void*, std::shared_ptr<Event>> live;
};
Events& events() {
  static auto* held = new Events;
  return *held;
}

Outcome wait_for(Event& event, uint64_t generation) {
  std::unique_lock<std::mutex> lock(event.m);
  event.changed.wait(lock, [&] { return event.external() ? event.set : event.completed >= generation; });
  return {};
}

aclError create(aclrtEvent* handle, uint32_t flag) {
  if ((flag & ACL_EVENT_IPC) != 0) {
    return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "events between processes are not emulated");
  }
  auto event = std::make_shared<Event>(flag);
  std::lock_guard<std::mutex> lock(events().m);
  events().live[event.get()] = event;
  *handle = event.get();
  return ACL_SUCCESS;
}

// What may not be asked of an event that was last recorded inside a capture.
aclError refuse_captured(const char* function, Event& event) {
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  auto model = event.model.lock();
  if (!model || model->status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE)
    return 0;
  invalidate(*model, std::string(function) + " of an event that was recorded in the capture");
  return fail(ACL_ERROR_RT_EVENT_CAPTURED, "%s: the event was recorded in a capture that goes on", function);
}
}  // namespace

std::shared_ptr<Event> event_of(aclrtEvent handle) {
  std::lock_guard<std::mutex> lock(events().m);
  auto it = events().live.find(handle);
  if (it != events().live.end())
    return it->second;
  fail(ACL_ERROR_RT_PARAM_INVALID, "%p is no event, or was destroyed", handle);
  return nullptr;
}

}  // namespace sim

using namespace sim;

EXPORT aclError aclrtCreateEventWithFlag(aclrtEvent* handle, uint32_t flag) {
  API(aclrtCreateEventWithFlag);
  return create(handle, flag);
}

EXPORT aclError aclrtCreateEventExWithFlag(aclrtEvent* handle, uint32_t flag) {
  API(aclrtCreateEventExWithFlag);
  return create(handle, flag);
}

EXPORT aclError aclrtDestroyEvent(aclrtEvent handle) {
  API(aclrtDestroyEvent);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(events().m);
  events().live.erase(handle);  // tasks that still need it hold it
  return ACL_SUCCESS;
}

EXPORT aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  API(aclrtRecordEvent);
  auto event = event_of(handle);
  auto stream = stream_of(stream_handle);
  if (!event || !stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (!event->external()) {
    std::lock_guard<std::recursive_mutex> lock(capture_mutex());
    if (stream->capture)
      return record_in_capture(*stream, event);
    event->model.reset();
  }
  auto task = std::make_shared<Task>(Task{Kind::record, "record", nullptr, 0, event});
  {
    std::lock_guard<std::mutex> lock(event->m);
    task->generation = ++event->issued;
  }
  task->run = [event, generation = task->generation] {
    std::lock_guard<std::mutex> lock(event->m);
    event->completed = std::max(event->completed, generation);
    event->set = true;
    event->changed.notify_all();
    return Outcome{};
  };
  return submit(stream_handle, std::move(task));
}

EXPORT aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  API(aclrtStreamWaitEvent);
  auto event = event_of(handle);
  auto stream = stream_of(stream_handle);
  if (!event || !stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (!event->external()) {
    std::lock_guard<std::recursive_mutex> lock(capture_mutex());
    auto model = event->model.lock();
    if (stream->capture || (model && model->status == ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE)) {
      return wait_in_capture(*stream, event);
    }
  }
  auto task = std::make_shared<Task>(Task{Kind::wait, "wait", nullptr, 0, event});
  {
    std::lock_guard<std::mutex> lock(event->m);
    task->generation = event->issued;
  }
  task->run = [event, generation = task->generation] { return wait_for(*event, generation); };
  return submit(stream_handle, std::move(task));
}

EXPORT aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream) {
  API(aclrtResetEvent);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (!event->external())
    return ACL_SUCCESS;
  return submit(stream, std::make_shared<Task>(Task{Kind::reset, "reset",
                                                    [event] {
                                                      std::lock_guard<std::mutex> lock(event->m);
                                                      event->set = false;
                                                      return Outcome{};
                                                    },
                                                    0, event}));
}

EXPORT aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  API(aclrtQueryEventStatus);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (const aclError refused = refuse_captured("aclrtQueryEventStatus", *event))
    return refused;
  std::lock_guard<std::mutex> lock(event->m);
  *status =
      event->completed >= event->issued ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtQueryEventWaitStatus(aclrtEvent handle, aclrtEventWaitStatus* status) {
  API(aclrtQueryEventWaitStatus);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(event->m);
  *status = event->completed >= event->issued ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  API(aclrtSynchronizeEvent);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (const aclError refused = refuse_captured("aclrtSynchronizeEvent", *event))
    return refused;
  WithoutPython none;
  std::unique_lock<std::mutex> lock(event->m);
  const uint64_t generation = event->issued;
  const auto patience = std::chrono::duration<double>(config().patience);
  if (!event->changed.wait_for(lock, patience, [&] { return event->completed >= generation; })) {
    return fail(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, "aclrtSynchronizeEvent: not recorded within ASCEND_SIM_PATIENCE");
  }
  clock::wait_until(event->at);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtEventElapsedTime(float* ms, aclrtEvent start_handle, aclrtEvent end_handle) {
  API(aclrtEventElapsedTime);
  auto start = event_of(start_handle), end = event_of(end_handle);
  if (!start || !end)
    return ACL_ERROR_RT_PARAM_INVALID;
  double from = 0, to = 0;
  for (auto [event, at] : {std::pair{start.get(), &from}, std::pair{end.get(), &to}}) {
    if (const aclError refused = refuse_captured("aclrtEventElapsedTime", *event))
      return refused;
    std::lock_guard<std::mutex> lock(event->m);
    if (event->issued == 0 || event->completed < event->issued) {
      return fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "aclrtEventElapsedTime: an event is not recorded yet");
    }
    *at = event->at;
  }
  *ms = static_cast<float>((to - from) / 1e3);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtEventGetTimestamp(aclrtEvent handle, uint64_t* timestamp) {
  API(aclrtEventGetTimestamp);
  auto event = event_of(handle);
  if (!event)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::mutex> lock(event->m);
  *timestamp = static_cast<uint64_t>(event->at);
  return ACL_SUCCESS;
}
