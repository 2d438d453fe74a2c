// Who may use the memory that the graphs of one device share: one replay or capture at a time, in the order of streams.
#pragma once

#include <c10/core/Stream.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <unordered_map>

namespace graphmode {

class Turn {
 public:
  explicit Turn(c10::DeviceType type) : type_(type) {}
  // Waits until it is this thread's turn on a device (-1: the current one), and makes the device's current stream wait
  // for what the stream before was given. A thread may take several turns one in another. Needs no GIL and drops it
  // while it waits.
  void take(c10::DeviceIndex index);
  void leave();
  c10::DeviceType type() const {
    return type_;
  }

 private:
  c10::DeviceType type_;
  std::recursive_mutex mutex_;
  std::unordered_map<c10::DeviceIndex, c10::Stream> last_;  // by device, the stream that had the last turn
};

class InTurn {
 public:
  InTurn(Turn* turn, c10::DeviceIndex index) : turn_(turn) {
    if (turn_ != nullptr) {
      turn_->take(index);
    }
  }
  ~InTurn() {
    if (turn_ != nullptr) {
      turn_->leave();
    }
  }
  InTurn(const InTurn&) = delete;
  InTurn& operator=(const InTurn&) = delete;

 private:
  Turn* turn_;
};

}  // namespace graphmode
