// A graph that can be replayed: everything resolved once, addresses re-bound, then a flat loop over the steps.
#pragma once

#include <atomic>
#include <mutex>

#include "arena.h"
#include "held.h"
#include "planner.h"
#include "replayable.h"
#include "row_chains.h"
#include "tape.h"

namespace graphmode {

// One tensor of the program's result.
struct OutputRef {
  int value = -1;          // plain tensor, or
  int boxed = -1;          // a value that is no plain tensor
  int same_as_input = -1;  // the very input object
  bool view = false;       // for autograd, of the input it lies in
  int base = -1;           // the output it is a view of, or
  int hidden = -1;         // the value that it and others are views of, which is no output itself
  bool inference = false;  // made in inference mode
};

// Raised when a call at replay gave other sizes or strides than at capture. All that was done up to that call has
// happened; the rest of the program must run live, on these tensors.
struct Diverged : std::runtime_error {
  int node;      // of the tape
  int position;  // of the program
  std::string op;
  std::vector<c10::IValue> results;                // of the call
  std::vector<std::pair<int, at::Tensor>> values;  // what the rest of the program needs, by value
  std::vector<std::pair<int, at::Tensor>> boxed;
  Diverged(int n, int p, std::string name, const std::string& what)
      : std::runtime_error(what), node(n), position(p), op(std::move(name)) {}
};

// Raised when memory that the graph relies on is no longer where, or as large as, it was.
struct Moved : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Raised in a forked child where a kernel would wait for threads that only its parent has.
struct Forked : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Plan {
  std::shared_ptr<Tape> tape;
  std::vector<OutputRef> outputs;
  std::vector<int64_t> offsets;  // per buffer, in the arena; -1 for others
  size_t arena_bytes = 0;
  size_t output_bytes = 0;            // fresh memory that each replay hands out
  size_t fixed_bytes = 0;             // memory held for constants
  std::vector<int> mutated_inputs;    // whose version counters a replay bumps
  std::vector<int> mutated_from;      // the node that writes each first
  std::vector<int> met_written_from;  // the same for Tape::met; the number of nodes where none does
  std::vector<bool> input_written;
  std::vector<bool> input_given;     // handed on: of any size, at any place
  std::vector<bool> input_absolute;  // must lie in its storage where it lay at capture
  std::vector<int64_t> input_align;  // bytes: the largest element it is read as
  // The values that the program needs from a position on, to go on live there. It may take the GIL.
  std::function<std::pair<std::vector<int>, std::vector<int>>(int position)> needs;
  bool splits_work = false;  // a value is large enough for torch to give it to several threads
  // Extent, in bytes relative to the input's first element, that the graph touches.
  std::vector<std::pair<int64_t, int64_t>> input_extent;
  std::vector<RowChain> chains;                 // in order; their nodes run as one kernel each
  int held = 0, out = 0, boxed = 0, fused = 0;  // nodes by what runs them
};

// Fixes kinds, lifetimes and offsets. Throws c10::Error when the tape can't be a graph.
// `fuel`: how many runs of calls may become one kernel each.
std::shared_ptr<Plan> make_plan(std::shared_ptr<Tape> tape, std::vector<OutputRef> outputs, int fuel);

// The outputs of a replay, with eager's relations between them: shared memory, version counters, views for autograd.
// `storages`: per buffer, for those that are not inputs. `boxed`: per boxed value.
std::vector<at::Tensor> make_outputs(const Plan& plan, at::ArrayRef<const at::Tensor*> inputs,
                                     const std::vector<c10::Storage>& storages, const std::vector<c10::IValue>& boxed);

// A tensor over an input's memory, where the tape has it as `v`. Shares the input's version counter.
at::Tensor over_input(const Tape& tape, const Value& v, const at::Tensor& input);

class Instance;

class Executable final : public Replayable {
 public:
  // poison: fill arena and outputs with garbage before each replay.
  explicit Executable(std::shared_ptr<Plan> plan, bool poison = false);
  ~Executable() override;
  const Plan& plan() const {
    return *plan_;
  }
  InputUse use(size_t index, const at::Tensor& t) const override;
  std::vector<at::Tensor> run(at::ArrayRef<const at::Tensor*> inputs, const char* const* first,
                              at::IntArrayRef) override {
    return run_until(inputs, first, -1);
  }
  // `until`: stop before this node, or before the chain that holds it; -1 for all.
  std::vector<at::Tensor> run_until(at::ArrayRef<const at::Tensor*> inputs, const char* const* first, int until);
  size_t instances();

 private:
  void check_fork();
  std::shared_ptr<Plan> plan_;
  Need need_;
  bool poison_;
  std::atomic<uint32_t> forks_{0};  // of the process that replayed last, where that took several threads
  std::mutex mutex_;
  std::vector<std::unique_ptr<Instance>> all_;
};

}  // namespace graphmode
