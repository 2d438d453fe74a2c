// What calls on other threads made or wrote while a raw capture is open: to the graph it would be a constant.
#pragma once

#include <ATen/core/Tensor.h>

namespace graphmode {

// Watches from construction to destruction; captures on several threads may each hold one.
class OtherThreads {
 public:
  OtherThreads();
  ~OtherThreads();
  OtherThreads(const OtherThreads&) = delete;
  OtherThreads& operator=(const OtherThreads&) = delete;
  // Whether a call on another thread gave this memory.
  static bool made(const c10::StorageImpl* storage);
};

}  // namespace graphmode
