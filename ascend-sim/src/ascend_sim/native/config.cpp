// The emulation's settings, from the environment. A value that can't be read ends the process: nobody asked for less.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "core.h"

namespace sim {

namespace {
[[noreturn]] void refuse(const char* name, const char* value, const char* expected) {
  fprintf(stderr, "ascend-sim: %s=%s: expected %s\n", name, value, expected);
  exit(2);
}

double number(const char* name, double otherwise, double least) {
  const char* value = getenv(name);
  if (value == nullptr || *value == 0)
    return otherwise;
  char* end = nullptr;
  const double found = strtod(value, &end);
  if (end == value || *end != 0 || !std::isfinite(found) || found < least)
    refuse(name, value, "a number");
  return found;
}

size_t bytes(const char* name, size_t otherwise) {
  const char* value = getenv(name);
  if (value == nullptr || *value == 0)
    return otherwise;
  char* end = nullptr;
  const double found = strtod(value, &end);
  double unit = 1;
  if (*end == 'K' || *end == 'M' || *end == 'G')
    unit = std::pow(1024.0, std::string("KMG").find(*end++) + 1.0);
  if (end == value || *end != 0 || !(found * unit >= 1 << 21))
    refuse(name, value, "bytes, at least 2M, as in 512M or 4G");
  return static_cast<size_t>(found * unit);
}
}  // namespace

const Config& config() {
  static const auto* held = new Config{
      static_cast<int>(number("ASCEND_SIM_DEVICES", 2, 1)),
      bytes("ASCEND_SIM_HBM", size_t{8} << 30),
      getenv("ASCEND_SIM_SOC") != nullptr ? getenv("ASCEND_SIM_SOC") : "Ascend910B1",
      static_cast<int>(number("ASCEND_SIM_STREAMS", 1920, 1)),
      number("ASCEND_SIM_CHECK", 0, 0) != 0,
      number("ASCEND_SIM_PATIENCE", 120, 0.01),
      number("ASCEND_SIM_HOST_CALL_US", 2, 0),
      number("ASCEND_SIM_TASK_LAUNCH_US", 3, 0),
      number("ASCEND_SIM_GRAPH_LAUNCH_US", 8, 0),
      number("ASCEND_SIM_GRAPH_TASK_US", 0.5, 0),
      number("ASCEND_SIM_TASK_US", 2, 0),
      number("ASCEND_SIM_GBPS", 800, 0.001) * 1e3,
  };
  return *held;
}

}  // namespace sim
