// The thread's last error and its text, as aclGetRecentErrMsg gives them; and the calls of each function.
#include <cstdarg>
#include <cstdio>

#include "core.h"
#include "sim.h"

namespace sim {

namespace {
thread_local std::string recent;
thread_local std::string given;  // what the caller of aclGetRecentErrMsg holds
thread_local int last = 0;

struct Counters {
  std::mutex m;
  std::vector<Counter*> all;
};
Counters& counters() {
  static auto* held = new Counters;  // calls come from threads that outlive main
  return *held;
}
}  // namespace

aclError fail(int code, const char* format, ...) {
  char text[2048];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  recent = std::string("ascend-sim: ") + text;
  last = code;
  return code;
}

Counter::Counter(const char* name) : name(name) {
  std::lock_guard<std::mutex> lock(counters().m);
  counters().all.push_back(this);
}

void called(Counter& counter) {
  counter.calls.fetch_add(1, std::memory_order_relaxed);
  clock::spend(config().host_call_us);
}

}  // namespace sim

EXPORT const char* aclGetRecentErrMsg() {
  sim::given.swap(sim::recent);
  sim::recent.clear();
  return sim::given.c_str();
}

EXPORT aclError aclrtPeekAtLastError(aclrtLastErrLevel) {
  return sim::last;
}

EXPORT aclError aclrtGetLastError(aclrtLastErrLevel) {
  const int code = sim::last;
  sim::last = 0;
  return code;
}

EXPORT size_t ascsim_counters(const char** names, uint64_t* calls, size_t room) {
  std::lock_guard<std::mutex> lock(sim::counters().m);
  const auto& all = sim::counters().all;
  for (size_t i = 0; i < all.size() && i < room; ++i) {
    names[i] = all[i]->name;
    calls[i] = all[i]->calls.load();
  }
  return all.size();
}
