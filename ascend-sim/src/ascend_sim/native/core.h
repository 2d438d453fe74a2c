// What all parts of the emulated runtime share: errors, counted calls, and the objects behind ACL's opaque handles.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "acl/acl.h"
#include "acl/error_codes/rt_error_codes.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#define SHARED __attribute__((visibility("default")))  // with libhccl.so

namespace sim {

// --- errors and calls --------------------------------------------------------------------------------------------

// Sets the thread's last error and its text, and returns the code.
SHARED aclError fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// One counter for each function of the runtime, made at its first call.
struct SHARED Counter {
  explicit Counter(const char* name);
  const char* name;
  std::atomic<uint64_t> calls{0};
};

// Counts a call and charges it to the host's clock.
#define API(function)                        \
  static ::sim::Counter counter_(#function); \
  ::sim::called(counter_)

SHARED void called(Counter& counter);

// --- configuration -----------------------------------------------------------------------------------------------

// From ASCEND_SIM_*; read once, at the first call.
struct Config {
  int devices;             // ASCEND_SIM_DEVICES
  size_t hbm;              // bytes of each device: ASCEND_SIM_HBM
  std::string soc;         // ASCEND_SIM_SOC
  int streams;             // that a device has for streams and graphs: ASCEND_SIM_STREAMS
  bool check;              // host code that touches device memory ends the process: ASCEND_SIM_CHECK
  double patience;         // seconds that a synchronisation waits while no task ends: ASCEND_SIM_PATIENCE
  double host_call_us;     // of host time for a call of the runtime: ASCEND_SIM_HOST_CALL_US
  double task_launch_us;   // of device time before a task of a stream starts: ASCEND_SIM_TASK_LAUNCH_US
  double graph_launch_us;  // of device time before a graph starts: ASCEND_SIM_GRAPH_LAUNCH_US
  double graph_task_us;    // of device time before a task of a graph starts: ASCEND_SIM_GRAPH_TASK_US
  double task_us;          // of device time for a task: ASCEND_SIM_TASK_US
  double bandwidth;        // bytes a microsecond of what a task reads and writes: ASCEND_SIM_GBPS / 1e-3
};
SHARED const Config& config();

// --- virtual time ------------------------------------------------------------------------------------------------

namespace clock {
double host();                                                                       // microseconds since the start
void spend(double us);                                                               // on the host
void wait_until(double us);                                                          // the host waits for a device
void span(int device, int lane, const std::string& name, double start, double end);  // for the time line
}  // namespace clock

// --- memory ------------------------------------------------------------------------------------------------------

namespace memory {
// Where this process may read and write what lies at an address of a device; the address itself outside check mode.
SHARED void* host(const void* device);
// The device whose live allocation holds all of [address, address + bytes); -1 where none does.
SHARED int device_of(const void* address, size_t bytes);
// Whether an address lies in the range that is a device's, live or not.
bool is_device(const void* address);
}  // namespace memory

// --- tasks -------------------------------------------------------------------------------------------------------

struct Outcome {
  int code = 0;
  std::string text;
};

struct Event;
struct Model;
struct Stream;

enum class Kind { kernel, copy, set, host, record, wait, reset, write_value, wait_value, execute, update, collective };
const char* name_of(Kind kind);

// What a stream does in its turn. A graph keeps its tasks and runs them at each execution.
struct Task {
  Kind kind;
  std::string name;
  std::function<Outcome()> run;
  double bytes = 0;                   // read and written, for the cost
  std::shared_ptr<Event> event = {};  // of record, wait and reset
  uint64_t generation = 0;            // of the event, for record and wait
  std::shared_ptr<Model> model = {};  // of execute
};
using TaskPtr = std::shared_ptr<Task>;

double cost(const Task& task);  // microseconds

struct Event {
  explicit Event(uint32_t flag) : flag(flag) {}
  bool external() const {
    return (flag & ACL_EVENT_EXTERNAL) != 0;
  }

  const uint32_t flag;
  std::mutex m;
  std::condition_variable changed;
  uint64_t issued = 0, completed = 0;  // records
  bool set = false;                    // of an external event
  double at = 0;                       // virtual time of the last completed record
  // The record inside a capture, if that was the last one.
  std::weak_ptr<Model> model;
  int lane = -1, position = -1;
};

// --- streams -----------------------------------------------------------------------------------------------------

struct TaskGroup {
  std::weak_ptr<Model> model;
  std::vector<int> nodes;
};

struct Stream {
  Stream(int device, int id) : device(device), id(id) {}
  ~Stream();
  void push(TaskPtr task);
  Outcome drain(double timeout_s);  // waits until all is done; takes the error of a task with it
  bool idle();

  const int device, id;
  uint64_t failure_mode = ACL_STOP_ON_FAILURE;
  std::map<int, uint32_t> limits;  // of cores, by aclrtDevResLimitType

  // A capture, if this stream takes part in one. Under capture_mutex().
  std::shared_ptr<Model> capture;
  int lane = -1;
  bool in_group = false;
  std::vector<int> group;               // nodes of the task group that is open
  std::shared_ptr<TaskGroup> updating;  // what tasks given to this stream replace
  std::vector<TaskPtr> updates;

 private:
  void work();
  std::mutex m_;
  std::condition_variable wake_, done_;
  std::deque<TaskPtr> queue_;
  bool busy_ = false, stop_ = false;
  Outcome error_;
  uint64_t ended_ = 0;  // tasks
  double now_ = 0;      // virtual time of the stream
  std::thread worker_;
};

// The stream of a handle, of the default stream of the current device where it is null; null where there is none.
SHARED std::shared_ptr<Stream> stream_of(aclrtStream handle);
std::vector<std::shared_ptr<Stream>> streams_of(int device);
// Gives a task to a stream: it is run in turn, or kept by the graph that is captured, or replaces a task of one.
SHARED aclError submit(aclrtStream handle, TaskPtr task);
std::shared_ptr<Event> event_of(aclrtEvent handle);
// Streams and graphs share a budget. False where it is used up.
bool take_slots(int device, int count);
void give_slots(int device, int count);

// --- capture -----------------------------------------------------------------------------------------------------

struct Node {
  TaskPtr task;
  int lane;
  std::vector<int> after;  // nodes of other lanes
};

struct Model {
  ~Model();
  Outcome run(int device, double start, double* end);
  int add(int lane, TaskPtr task, std::vector<int> after = {});

  uint32_t id = 0;
  int device = 0, slots = 0;
  aclmdlRICaptureMode mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  aclmdlRICaptureStatus status = ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
  std::thread::id thread;
  std::weak_ptr<Stream> origin;
  std::string invalid;  // why
  std::vector<std::weak_ptr<Stream>> lanes;
  std::vector<int> last;               // node of each lane, -1 before the first
  std::vector<std::vector<int>> seen;  // [lane][other]: the last node of another lane that this one comes after
  std::vector<Node> nodes;
  std::mutex running;   // one execution at a time; updates come between tasks
  std::mutex changing;  // of a node's task
};

std::recursive_mutex& capture_mutex();
std::shared_ptr<Model> model_of(aclmdlRI handle);
// What a call that waits for a device, or copies at once, may not do now; 0 where it may.
aclError refuse_while_capturing(const char* function, Stream* stream);
aclError record_in_capture(Stream& stream, const std::shared_ptr<Event>& event);
aclError wait_in_capture(Stream& stream, const std::shared_ptr<Event>& event);
void invalidate(Model& model, const std::string& why);

// --- devices -----------------------------------------------------------------------------------------------------

SHARED int current_device();  // -1 where the thread has none
void use_device(int device);

// Lets go of Python's lock, if this thread holds it, while it waits: a host callback may need it.
struct SHARED WithoutPython {
  WithoutPython();
  ~WithoutPython();
  void* state = nullptr;
};

}  // namespace sim
