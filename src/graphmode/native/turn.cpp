#include "turn.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>

namespace graphmode {

void Turn::take(c10::DeviceIndex index) {
  if (!mutex_.try_lock()) {
    std::optional<pybind11::gil_scoped_release> no_gil;  // who has the turn may need it
    if (PyGILState_Check() != 0) {
      no_gil.emplace();
    }
    mutex_.lock();
  }
  try {
    const c10::impl::VirtualGuardImpl device(type_);
    const auto stream = device.getStream(index < 0 ? device.getDevice() : c10::Device(type_, index));
    const auto [last, first] = last_.emplace(stream.device_index(), stream);
    if (!first && last->second != stream) {
      c10::Event done(type_);
      done.record(last->second);  // what it was given reads and writes the same memory
      done.block(stream);
      last->second = stream;
    }
  } catch (...) {
    mutex_.unlock();
    throw;
  }
}

void Turn::leave() {
  mutex_.unlock();
}

}  // namespace graphmode
