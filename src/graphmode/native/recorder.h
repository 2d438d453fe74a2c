// Records the calls of one thread at the dispatcher, below autograd and above the CPU kernels.
#pragma once

#include "tape.h"

namespace graphmode {

// Starts recording on this thread. The calls execute as well. One recording per thread at a time.
void record_begin(std::shared_ptr<Tape> tape);
// Ends it and returns the tape.
std::shared_ptr<Tape> record_end();
// The tape of this thread, or null.
Tape* recording();
// Leaves out what this thread calls from now on, while a capture goes on: another's tracing is no work of the program.
void pause_recording(bool pause);
// A copy of a generator's state.
at::Tensor state_of(at::Generator generator);
// Whether a generator is still where the last draw that was seen left it.
bool same_state(const Drawn& drawn);

// Tells the tape which tensors are the inputs, in order, before anything ran.
void declare_inputs(Tape& tape, const std::vector<at::Tensor>& inputs, const std::vector<int>& given);

// Suspends recording for a scope: for our own calls while a capture is open.
class RecordingOff {
 public:
  RecordingOff();
  ~RecordingOff();
  RecordingOff(const RecordingOff&) = delete;
  RecordingOff& operator=(const RecordingOff&) = delete;

 private:
  bool was_;
};

}  // namespace graphmode
