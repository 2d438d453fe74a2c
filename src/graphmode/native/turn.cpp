#include "turn.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>

namespace graphmode {

c10::Stream Turn::current(c10::DeviceIndex index) const {
  const c10::impl::VirtualGuardImpl device(type_);
  return device.getStream(index < 0 ? device.getDevice() : c10::Device(type_, index));
}

void Turn::synchronize(c10::DeviceIndex index) const {
  c10::impl::VirtualGuardImpl(type_).synchronizeStream(current(index));
}

void Turn::take(c10::DeviceIndex index) {
  if (!mutex_.try_lock()) {
    std::optional<pybind11::gil_scoped_release> no_gil;  // who has the turn may need it
    if (PyGILState_Check() != 0) {
      no_gil.emplace();
    }
    mutex_.lock();
  }
  try {
    const auto stream = current(index);
    auto& last = last_.try_emplace(stream.device_index(), Last{stream}).first->second;
    if (last.stream != stream) {
      wait(stream, last);
      last.stream = stream;
      last.marks = kMarks;
    }
    last.done.reset();
    taken_.push_back(stream);
  } catch (...) {
    mutex_.unlock();
    throw;
  }
}

// Has a stream wait for the end of the last turn; where that left no mark, for all that its stream was given.
void Turn::wait(const c10::Stream& stream, Last& last) {
  if (!last.done) {
    c10::Event done(type_);
    done.record(last.stream);
    last.done.emplace(std::move(done));
  }
  last.done->block(stream);
}

void Turn::leave() {
  const auto mine = taken_.back();
  taken_.pop_back();
  auto& last = last_.at(mine.device_index());
  const auto same_device = [&](const c10::Stream& s) { return s.device_index() == mine.device_index(); };
  const auto outer = std::find_if(taken_.rbegin(), taken_.rend(), same_device);
  try {
    if (outer != taken_.rend()) {  // goes on with its turn, after this one
      if (*outer != last.stream) {
        wait(*outer, last);
        last.stream = *outer;
        last.done.reset();
      }
    } else if (last.marks > 0) {
      --last.marks;
      c10::Event done(type_);
      done.record(last.stream);
      last.done.emplace(std::move(done));
    }
  } catch (...) {  // the next turn on another stream waits for more than it must
    last.done.reset();
  }
  mutex_.unlock();
}

}  // namespace graphmode
