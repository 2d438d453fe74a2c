// Kernels: given by the library that knows torch, run in a stream's turn on memory that must be live then.
#include "core.h"
#include "sim.h"

namespace sim {
void stream_usage(int device, ascsim_usage* out);
void model_usage(int device, ascsim_usage* out);
namespace memory {
void usage(int device, ascsim_usage* out);
}
}  // namespace sim

using namespace sim;

EXPORT int ascsim_launch(void* stream, const char* name, const char* (*run)(void*), void (*drop)(void*), void* argument,
                         const ascsim_range* ranges, size_t count) {
  API(aclrtLaunchKernel);
  std::shared_ptr<void> held(argument, drop);
  std::vector<ascsim_range> used(ranges, ranges + count);
  double bytes = 0;
  for (const auto& range : used)
    bytes += static_cast<double>(range.bytes);
  auto work = [run, held, used = std::move(used)]() -> Outcome {
    for (const auto& range : used) {
      if (range.bytes > 0 && memory::device_of(range.address, range.bytes) < 0) {
        return {ACL_ERROR_RT_DEVICE_MEM_ERROR, "it uses " + std::to_string(range.bytes) +
                                                   " bytes of device memory that is not allocated: a stale address"};
      }
    }
    const char* wrong = run(held.get());
    return wrong == nullptr ? Outcome{} : Outcome{ACL_ERROR_RT_AICORE_EXCEPTION, wrong};
  };
  return submit(stream, std::make_shared<Task>(Task{Kind::kernel, name, work, bytes}));
}

EXPORT int ascsim_usage_of(int device, ascsim_usage* usage) {
  if (device < 0 || device >= config().devices)
    return fail(ACL_ERROR_RT_INVALID_DEVICEID, "no device %d", device);
  memory::usage(device, usage);
  stream_usage(device, usage);
  model_usage(device, usage);
  return ACL_SUCCESS;
}
