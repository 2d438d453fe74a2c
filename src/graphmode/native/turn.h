// Who may use the memory that the graphs of one device share: one replay or capture at a time, in the order of streams.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <torch/csrc/utils/pybind.h>

#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace graphmode {

class Turn {
 public:
  explicit Turn(c10::DeviceType type) : type_(type) {}
  // Waits until it is this thread's turn on a device (-1: the current one), and makes the device's current stream wait
  // for what the stream before was given. A thread may take several turns one in another. Needs no GIL and drops it
  // while it waits.
  void take(c10::DeviceIndex index);
  // Waits until the device's current stream has done all that it was given.
  void synchronize(c10::DeviceIndex index) const;
  // Ends the turn that was taken last.
  void leave();
  c10::DeviceType type() const {
    return type_;
  }

 private:
  // Turns that leave a mark after one that another stream had: while one stream has them all, none is needed.
  static constexpr int kMarks = 8;
  struct Last {
    c10::Stream stream;              // that had the last turn
    int marks = 0;                   // how many turns yet leave one
    std::optional<c10::Event> done;  // the mark: all that the turn gave its stream
  };
  c10::Stream current(c10::DeviceIndex index) const;
  void wait(const c10::Stream& stream, Last& last);

  c10::DeviceType type_;
  std::recursive_mutex mutex_;
  std::unordered_map<c10::DeviceIndex, Last> last_;
  std::vector<c10::Stream> taken_;  // the turns of the thread that has the mutex
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
