// What a runner needs of a graph: what each input must be like at a call, and the replay.
#pragma once

#include <ATen/core/Tensor.h>

namespace graphmode {

struct InputUse {
  bool given = false;          // handed on: of any size, at any place
  bool written = false;        //
  int alias_of = -1;           // an earlier input on the same memory, from which it must lie as far as at capture
  int64_t lo = 0, hi = 0;      // bytes touched, from the first element
  bool absolute = false;       // must lie in its storage where it lay at capture
  int64_t align = 1;           // bytes: the largest element it is read as
  int64_t offset = 0;          // elements, of the first one in its storage at capture
  int64_t needs = 0;           // bytes of storage
  const char* home = nullptr;  // where it must lie; null: anywhere
};

class Replayable {
 public:
  virtual ~Replayable() = default;
  // Of the tensor that stood at `index` at capture.
  virtual InputUse use(size_t index, const at::Tensor& t) const = 0;
  // Whether the integer that stood at `index` may be another at a replay, which is then told it.
  virtual bool is_told(size_t) const {
    return false;
  }
  // Whether it may be replayed now, for inputs that fit their uses. With the GIL.
  virtual bool fits(at::ArrayRef<const at::Tensor*>) {
    return true;
  }
  // Replays on these inputs (one per argument, null where that is no tensor) and returns the results. Thread-safe;
  // without the GIL. `first`: the address of each one's first element. `told`: the integers that may be others.
  virtual std::vector<at::Tensor> run(at::ArrayRef<const at::Tensor*> inputs, const char* const* first,
                                      at::IntArrayRef told) = 0;
};

}  // namespace graphmode
