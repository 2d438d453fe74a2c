#include "turn.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
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
    auto& last = last_.try_emplace(stream.device_index(), Last{stream}).first->second;
    if (last.stream != stream) {
      if (!last.done) {
        last.done.emplace(type_);
        last.done->record(last.stream);
      }
      last.done->block(stream);
      last = {stream, true, std::nullopt};
    }
    taken_.push_back(stream.device_index());
  } catch (...) {
    mutex_.unlock();
    throw;
  }
}

void Turn::leave() {
  const auto index = taken_.back();
  taken_.pop_back();
  auto& last = last_.at(index);
  if (last.others && std::find(taken_.begin(), taken_.end(), index) == taken_.end()) {
    try {
      if (!last.done) {
        last.done.emplace(type_);
      }
      last.done->record(last.stream);
    } catch (...) {  // the next turn on another stream records it, and waits for more than it must
      last.done.reset();
    }
  }
  mutex_.unlock();
}

}  // namespace graphmode
