// Virtual time: what the host and each device would have spent, from a cost model. No claim about real kernels.
#include <cstring>
#include <sstream>

#include "core.h"
#include "sim.h"

namespace sim {

const char* name_of(Kind kind) {
  static const char* names[] = {"kernel", "copy",        "set",        "host",    "record", "wait",
                                "reset",  "write value", "wait value", "execute", "update", "collective"};
  return names[static_cast<int>(kind)];
}

double cost(const Task& task) {
  switch (task.kind) {
    case Kind::kernel:
    case Kind::copy:
    case Kind::set:
    case Kind::collective:
      return config().task_us + task.bytes / config().bandwidth;
    default:
      return 0;
  }
}

namespace clock {
namespace {
struct Span {
  int device, lane;
  std::string name;
  double start, end;
};
struct Time {
  std::mutex m;
  double host = 0;
  std::map<int, double> device;
  bool on = false;
  std::vector<Span> spans;
};
Time& time() {
  static auto* held = new Time;
  return *held;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}
}  // namespace

double host() {
  std::lock_guard<std::mutex> lock(time().m);
  return time().host;
}

void spend(double us) {
  std::lock_guard<std::mutex> lock(time().m);
  time().host += us;
}

void wait_until(double us) {
  std::lock_guard<std::mutex> lock(time().m);
  time().host = std::max(time().host, us);
}

void span(int device, int lane, const std::string& name, double start, double end) {
  std::lock_guard<std::mutex> lock(time().m);
  double& latest = time().device[device];
  latest = std::max(latest, end);
  if (time().on)
    time().spans.push_back({device, lane, name, start, end});
}

}  // namespace clock
}  // namespace sim

EXPORT double ascsim_host_time() {
  return sim::clock::host();
}

EXPORT double ascsim_device_time(int device) {
  std::lock_guard<std::mutex> lock(sim::clock::time().m);
  return sim::clock::time().device[device];
}

EXPORT void ascsim_timeline(int on) {
  std::lock_guard<std::mutex> lock(sim::clock::time().m);
  sim::clock::time().on = on != 0;
  sim::clock::time().spans.clear();
}

EXPORT char* ascsim_timeline_json() {
  std::lock_guard<std::mutex> lock(sim::clock::time().m);
  std::ostringstream out;
  out.precision(12);
  out << "{\"displayTimeUnit\": \"ns\", \"traceEvents\": [";
  const char* between = "";
  for (const auto& s : sim::clock::time().spans) {
    out << between << "\n{\"ph\": \"X\", \"name\": " << sim::clock::quoted(s.name) << ", \"pid\": " << s.device
        << ", \"tid\": " << s.lane << ", \"ts\": " << s.start << ", \"dur\": " << s.end - s.start << "}";
    between = ",";
  }
  out << "\n]}\n";
  return strdup(out.str().c_str());
}

EXPORT void ascsim_free(char* text) {
  free(text);
}
