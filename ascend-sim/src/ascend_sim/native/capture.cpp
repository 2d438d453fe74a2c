// Capture: tasks of a stream, and of streams that joined it by events, are kept as a graph and not run. Calls that
// would wait for the device, or copy at once, are refused, and make the capture invalid, as on a device.
#include <algorithm>
#include <fstream>

#include "core.h"
#include "sim.h"

namespace sim {

namespace {
thread_local aclmdlRICaptureMode exchanged = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

struct Models {
  std::unordered_map<void*, std::shared_ptr<Model>> live;
  std::vector<std::weak_ptr<Model>> capturing;
  std::unordered_map<void*, std::shared_ptr<TaskGroup>> groups;
  std::map<int, std::pair<uint64_t, uint64_t>> counts;  // captures and executions, by device
  uint32_t next = 1;
};
Models& models() {
  static auto* held = new Models;
  return *held;
}

std::vector<std::shared_ptr<Model>> active() {
  std::vector<std::shared_ptr<Model>> found;
  for (auto& weak : models().capturing) {
    auto model = weak.lock();
    if (model && model->status == ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE)
      found.push_back(model);
  }
  return found;
}

int join(Model& model, const std::shared_ptr<Stream>& stream) {
  model.lanes.push_back(stream);
  model.last.push_back(-1);
  for (auto& seen : model.seen)
    seen.push_back(-1);
  model.seen.emplace_back(model.lanes.size(), -1);
  stream->lane = static_cast<int>(model.lanes.size()) - 1;
  return stream->lane;
}

std::shared_ptr<Stream> shared(Stream& stream) {
  for (auto& one : streams_of(stream.device)) {
    if (one.get() == &stream)
      return one;
  }
  return nullptr;
}

void leave(Model& model) {
  for (auto& weak : model.lanes) {
    if (auto stream = weak.lock()) {
      stream->capture.reset();
      stream->lane = -1;
      stream->in_group = false;
      stream->group.clear();
    }
  }
  auto& all = models().capturing;
  all.erase(std::remove_if(all.begin(), all.end(), [&](auto& w) { return w.expired() || w.lock().get() == &model; }),
            all.end());
}

aclError refuse(Model& model, int code, const std::string& why) {
  invalidate(model, why);
  return fail(code, "%s", why.c_str());
}

std::string escaped(const std::string& text);

// Records and waits are known by the name of what they wait for.
std::string traced_name(const Model& model, size_t node) {
  const Node& n = model.nodes[node];
  switch (n.task->kind) {
    case Kind::record:
      return "EVENT_RECORD_" + std::to_string(node);
    case Kind::wait:
      return "EVENT_WAIT_" + std::to_string(n.after.empty() ? static_cast<int>(node) : n.after[0]);
    case Kind::reset:
      return "EVENT_RESET_" + std::to_string(node);
    default:
      return escaped(n.task->name);
  }
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\';
    out += c;
  }
  return out;
}
}  // namespace

std::recursive_mutex& capture_mutex() {
  static auto* held = new std::recursive_mutex;
  return *held;
}

void invalidate(Model& model, const std::string& why) {
  if (model.status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE)
    return;
  model.status = ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED;
  model.invalid = why;
}

Model::~Model() {
  if (slots > 0)
    give_slots(device, slots);
}

int Model::add(int lane, TaskPtr task, std::vector<int> after) {
  const int node = static_cast<int>(nodes.size());
  nodes.push_back({std::move(task), lane, std::move(after)});
  last[static_cast<size_t>(lane)] = node;
  seen[static_cast<size_t>(lane)][static_cast<size_t>(lane)] = node;
  return node;
}

// In the order of the capture, which every dependency follows. Only virtual time knows that lanes run side by side.
Outcome Model::run(int on, double start, double* end) {
  std::lock_guard<std::mutex> one(running);
  {
    std::lock_guard<std::recursive_mutex> lock(capture_mutex());
    ++models().counts[on].second;
  }
  const double begin = start + config().graph_launch_us;
  std::vector<double> lane_end(lanes.size(), begin), node_end(nodes.size(), begin);
  for (size_t i = 0; i < nodes.size(); ++i) {
    TaskPtr task;
    {
      std::lock_guard<std::mutex> lock(changing);
      task = nodes[i].task;
    }
    double from = lane_end[static_cast<size_t>(nodes[i].lane)];
    for (const int before : nodes[i].after)
      from = std::max(from, node_end[static_cast<size_t>(before)]);
    Outcome outcome = task->kind == Kind::execute ? task->model->run(on, from, &from)
                      : task->run                 ? task->run()
                                                  : Outcome{};
    if (outcome.code != 0) {
      outcome.text =
          "graph " + std::to_string(id) + ", task " + std::to_string(i) + " (" + task->name + "): " + outcome.text;
      return outcome;
    }
    if (task->kind != Kind::record && task->kind != Kind::wait)
      from += config().graph_task_us;
    const double until = from + cost(*task);
    clock::span(on, nodes[i].lane, task->name, from, until);
    lane_end[static_cast<size_t>(nodes[i].lane)] = node_end[i] = until;
  }
  *end = *std::max_element(lane_end.begin(), lane_end.end());
  return {};
}

std::shared_ptr<Model> model_of(aclmdlRI handle) {
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  auto it = models().live.find(handle);
  if (it != models().live.end())
    return it->second;
  fail(ACL_ERROR_RT_PARAM_INVALID, "%p is no graph, or was destroyed", handle);
  return nullptr;
}

aclError refuse_while_capturing(const char* function, Stream* stream) {
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (stream != nullptr && stream->capture) {
    return refuse(*stream->capture, ACL_ERROR_RT_STREAM_CAPTURED,
                  std::string(function) + " of a stream that is captured");
  }
  if (stream != nullptr || exchanged == ACL_MODEL_RI_CAPTURE_MODE_RELAXED)
    return 0;
  for (auto& model : active()) {  // what waits for, or works on, more than one stream
    const bool mine = model->thread == std::this_thread::get_id();
    const bool whole_device = std::string(function).find("Synchronize") != std::string::npos;
    const bool global = model->mode == ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
    const bool local = model->mode == ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL && mine;
    if (global || local || (whole_device && model->device == current_device())) {
      return refuse(*model, ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, std::string(function) + " during a capture");
    }
  }
  return 0;
}

aclError record_in_capture(Stream& stream, const std::shared_ptr<Event>& event) {
  Model& model = *stream.capture;
  if (model.status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE) {
    return fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture is invalid: %s", model.invalid.c_str());
  }
  event->model = stream.capture;
  event->lane = stream.lane;
  event->position = model.add(stream.lane, std::make_shared<Task>(Task{Kind::record, "record", nullptr}));
  return ACL_SUCCESS;
}

aclError wait_in_capture(Stream& stream, const std::shared_ptr<Event>& event) {
  auto model = event->model.lock();
  if (!model || model->status == ACL_MODEL_RI_CAPTURE_STATUS_NONE) {
    std::lock_guard<std::mutex> lock(event->m);
    if (event->issued == 0)
      return ACL_SUCCESS;  // never recorded: nothing to wait for
    return refuse(*stream.capture, ACL_ERROR_RT_CAPTURE_DEPENDENCY,
                  "a captured stream waits for an event that was recorded outside the capture");
  }
  if (stream.capture && stream.capture != model) {
    invalidate(*model, "another capture waited for it");
    return refuse(*stream.capture, ACL_ERROR_STREAM_CAPTURE_CONFLICT, "a captured stream waits for another capture");
  }
  if (model->status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE) {
    return fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture is invalid: %s", model->invalid.c_str());
  }
  if (!stream.capture) {
    auto joined = shared(stream);
    if (!joined || stream.id < 0) {
      return refuse(*model, ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream can't join a capture");
    }
    if (!take_slots(model->device, 1)) {
      return refuse(*model, ACL_ERROR_RT_NO_STREAM_RESOURCE, "Alloc sq cq fail: no stream is left for the graph");
    }
    ++model->slots;
    stream.capture = model;
    join(*model, joined);
  }
  auto& seen = model->seen[static_cast<size_t>(stream.lane)];
  const auto& theirs = model->seen[static_cast<size_t>(event->lane)];
  for (size_t lane = 0; lane < seen.size(); ++lane) {
    if (lane != static_cast<size_t>(stream.lane)) {
      const int until = static_cast<int>(lane) == event->lane ? event->position : theirs[lane];
      seen[lane] = std::max(seen[lane], until);
    }
  }
  model->add(stream.lane, std::make_shared<Task>(Task{Kind::wait, "wait", nullptr}), {event->position});
  return ACL_SUCCESS;
}

void model_usage(int device, ascsim_usage* out) {
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  out->graphs = out->graph_slots = out->graph_tasks = 0;
  for (auto& [handle, model] : models().live) {
    if (model->device != device)
      continue;
    ++out->graphs;
    out->graph_slots += static_cast<uint64_t>(model->slots);
    out->graph_tasks += model->nodes.size();
  }
  out->captures = models().counts[device].first;
  out->executions = models().counts[device].second;
}

}  // namespace sim

using namespace sim;

EXPORT aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode mode) {
  API(aclmdlRICaptureBegin);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (handle == nullptr) {
    return fail(ACL_ERROR_RT_STREAM_NOT_SUPPORT_OPERA, "aclmdlRICaptureBegin: the default stream can't be captured");
  }
  if (stream->capture) {
    return refuse(*stream->capture, ACL_ERROR_RT_STREAM_CAPTURED,
                  "aclmdlRICaptureBegin: the stream is captured already");
  }
  auto model = std::make_shared<Model>();
  model->device = stream->device;
  if (!take_slots(model->device, 1)) {
    return fail(ACL_ERROR_RT_NO_STREAM_RESOURCE,
                "Alloc sq cq fail: graphs and streams use all %d that the device has (ASCEND_SIM_STREAMS)",
                config().streams);
  }
  model->slots = 1;
  model->id = models().next++;
  model->mode = mode;
  model->thread = std::this_thread::get_id();
  model->origin = stream;
  stream->capture = model;
  join(*model, stream);
  models().live[model.get()] = model;
  models().capturing.push_back(model);
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status, aclmdlRI* out) {
  API(aclmdlRICaptureGetInfo);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (status != nullptr)
    *status = stream->capture ? stream->capture->status : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (out != nullptr)
    *out = stream->capture.get();
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* out) {
  API(aclmdlRICaptureEnd);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  auto model = stream->capture;
  if (!model)
    return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd: the stream is not captured");
  if (model->origin.lock() != stream) {
    return refuse(*model, ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED,
                  "aclmdlRICaptureEnd: the capture began on another stream");
  }
  if (model->mode != ACL_MODEL_RI_CAPTURE_MODE_RELAXED && model->thread != std::this_thread::get_id()) {
    return refuse(*model, ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD,
                  "aclmdlRICaptureEnd: the capture began in another thread");
  }
  int code = 0;
  if (model->status != ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE) {
    code = fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture is invalid: %s", model->invalid.c_str());
  }
  for (size_t lane = 1; code == 0 && lane < model->lanes.size(); ++lane) {
    if (model->seen[0][lane] < model->last[lane]) {
      code = fail(ACL_ERROR_RT_STREAM_UNJOINED, "a stream that joined the capture was not joined again at its end");
    }
  }
  for (auto& weak : model->lanes) {
    auto one = weak.lock();
    if (code == 0 && one && one->in_group) {
      code = fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "a task group is open at the end of the capture");
    }
  }
  leave(*model);
  model->status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (code != 0) {
    models().live.erase(model.get());
    *out = nullptr;
    return code;
  }
  ++models().counts[model->device].first;
  *out = model.get();
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  API(aclmdlRICaptureThreadExchangeMode);
  std::swap(exchanged, *mode);
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream) {
  API(aclmdlRIExecuteAsync);
  auto model = model_of(handle);
  if (!model)
    return ACL_ERROR_RT_PARAM_INVALID;
  if (model->status != ACL_MODEL_RI_CAPTURE_STATUS_NONE) {
    return fail(ACL_ERROR_RT_MODEL_CAPTURED, "aclmdlRIExecuteAsync: the graph is still captured");
  }
  return submit(stream, std::make_shared<Task>(
                            Task{Kind::execute, "graph " + std::to_string(model->id), nullptr, 0, nullptr, 0, model}));
}

EXPORT aclError aclmdlRIDestroy(aclmdlRI handle) {
  API(aclmdlRIDestroy);
  auto model = model_of(handle);
  if (!model)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (model->status != ACL_MODEL_RI_CAPTURE_STATUS_NONE) {
    return fail(ACL_ERROR_RT_MODEL_CAPTURED, "aclmdlRIDestroy: the graph is still captured");
  }
  models().live.erase(handle);  // an execution in flight holds it to its end
  for (auto it = models().groups.begin(); it != models().groups.end();) {
    it = it->second->model.lock() == model ? models().groups.erase(it) : std::next(it);
  }
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRIGetId(aclmdlRI handle, uint32_t* id) {
  API(aclmdlRIGetId);
  auto model = model_of(handle);
  if (!model)
    return ACL_ERROR_RT_PARAM_INVALID;
  *id = model->id;
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRIDebugJsonPrint(aclmdlRI handle, const char* path, uint32_t) {
  API(aclmdlRIDebugJsonPrint);
  auto model = model_of(handle);
  if (!model)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::ofstream out(path);
  out << "[";  // trace events, as torch_npu's debug_dump reads them
  for (size_t i = 0; i < model->nodes.size(); ++i) {
    const Node& node = model->nodes[i];
    out << (i == 0 ? "\n" : ",\n") << "{\"ph\": \"X\", \"name\": \"" << traced_name(*model, i) << "\", \"pid\": \"graph"
        << model->id << "\", \"tid\": \"stream" << node.lane << "\", \"ts\": " << i
        << ", \"dur\": 1, \"args\": {\"Task Type\": \"" << name_of(node.task->kind)
        << "\", \"Stream Id\": " << node.lane << ", \"Task Id\": " << i << "}}";
  }
  out << "\n]\n";
  out.close();
  return out ? ACL_SUCCESS : fail(ACL_ERROR_RT_FILE_WRITE, "aclmdlRIDebugJsonPrint: can't write %s", path);
}

EXPORT aclError aclmdlRIDebugPrint(aclmdlRI handle) {
  API(aclmdlRIDebugPrint);
  auto model = model_of(handle);
  if (!model)
    return ACL_ERROR_RT_PARAM_INVALID;
  for (size_t i = 0; i < model->nodes.size(); ++i) {
    const Node& node = model->nodes[i];
    fprintf(stderr, "graph %u task %zu stream %d %s %s\n", model->id, i, node.lane, name_of(node.task->kind),
            node.task->name.c_str());
  }
  return ACL_SUCCESS;
}

// --- groups of tasks, and their update

EXPORT aclError aclmdlRICaptureTaskGrpBegin(aclrtStream handle) {
  API(aclmdlRICaptureTaskGrpBegin);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (!stream->capture)
    return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "a task group outside a capture");
  if (stream->in_group)
    return refuse(*stream->capture, ACL_ERROR_STREAM_TASK_GROUP_STATUS, "a task group inside another");
  stream->in_group = true;
  stream->group.clear();
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureTaskGrpEnd(aclrtStream handle, aclrtTaskGrp* out) {
  API(aclmdlRICaptureTaskGrpEnd);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  if (!stream->capture || !stream->in_group) {
    return fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "the end of a task group that was not begun");
  }
  auto group = std::make_shared<TaskGroup>();
  group->model = stream->capture;
  group->nodes.swap(stream->group);
  stream->in_group = false;
  models().groups[group.get()] = group;
  *out = group.get();
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream handle, aclrtTaskGrp group) {
  API(aclmdlRICaptureTaskUpdateBegin);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::lock_guard<std::recursive_mutex> lock(capture_mutex());
  auto it = models().groups.find(group);
  if (it == models().groups.end()) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclmdlRICaptureTaskUpdateBegin: no such task group");
  }
  if (stream->capture || stream->updating) {
    return fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS,
                "aclmdlRICaptureTaskUpdateBegin: the stream is captured or updates already");
  }
  stream->updating = it->second;
  stream->updates.clear();
  return ACL_SUCCESS;
}

EXPORT aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream handle) {
  API(aclmdlRICaptureTaskUpdateEnd);
  auto stream = stream_of(handle);
  if (!stream)
    return ACL_ERROR_RT_PARAM_INVALID;
  std::unique_lock<std::recursive_mutex> lock(capture_mutex());
  auto group = std::move(stream->updating);
  stream->updating.reset();
  auto updates = std::move(stream->updates);
  stream->updates.clear();
  if (!group)
    return fail(ACL_ERROR_STREAM_TASK_GROUP_STATUS, "aclmdlRICaptureTaskUpdateEnd: nothing was begun");
  auto model = group->model.lock();
  std::vector<int> kernels;
  for (const int node : group->nodes) {
    if (model && model->nodes[static_cast<size_t>(node)].task->kind == Kind::kernel)
      kernels.push_back(node);
  }
  if (!model || kernels.size() != updates.size()) {
    return fail(ACL_ERROR_RT_MODEL_UPDATE_FAILED, "the task group has %zu kernels, and the update gave %zu",
                kernels.size(), updates.size());
  }
  for (size_t i = 0; i < kernels.size(); ++i) {
    const std::string& old = model->nodes[static_cast<size_t>(kernels[i])].task->name;
    if (old != updates[i]->name) {
      return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT_UPDATE_OP, "the task group has %s where the update gave %s",
                  old.c_str(), updates[i]->name.c_str());
    }
  }
  lock.unlock();
  auto run = [model, kernels, updates] {
    std::lock_guard<std::mutex> held(model->changing);
    for (size_t i = 0; i < kernels.size(); ++i)
      model->nodes[static_cast<size_t>(kernels[i])].task = updates[i];
    return Outcome{};
  };
  return submit(handle, std::make_shared<Task>(Task{Kind::update, "update", run}));
}
