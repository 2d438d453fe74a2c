// Runs of a script's calls that row kernels do as well: what is learnt from a run that went call by call.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "row_chains.h"

namespace graphmode {

// A call of a run. Places are the run's inputs and then its calls' results, in order.
struct RunCall {
  c10::OperatorHandle op;
  std::vector<c10::IValue> args;             // with nothing where a tensor of the run stands
  std::vector<std::pair<int, int>> tensors;  // argument, place
  bool kept = false;                         // whether the result is used after the run
};

// Whether a call may be part of a run, whatever its arguments.
bool in_row_runs(const c10::OperatorHandle& op);

// What a run is, whoever's script has it.
std::string describe_run(int inputs, const std::vector<RunCall>& calls);

// How a tensor lies.
struct Layout {
  explicit Layout(const at::Tensor& t);
  bool is_of(const at::Tensor& t) const;

  std::vector<int64_t> sizes, strides;
  caffe2::TypeMeta dtype;
  c10::DispatchKeySet keys;
};

// A tensor as a run met it, whose memory may be gone.
struct Seen {
  explicit Seen(const at::Tensor& t);

  std::optional<Layout> layout;  // nothing: it is no plain tensor
  c10::DispatchKeySet plain;
  c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // null where it is no plain tensor
};

class RowRun {
 public:
  RowRun(int inputs, std::vector<RunCall> calls);

  enum class Known { Done, CallByCall, No };
  // Sets the results that are used after the run, for its inputs, in `places`. Else nothing has run: it goes call by
  // call, and where nothing was learnt of such inputs, `learn` waits for what comes of it.
  Known run(std::vector<at::Tensor>& places) const;

  // From inputs and all results. For any thread, as `run`; raises nothing, since all calls have happened.
  void learn(const std::vector<Seen>& places) noexcept;

  // How many calls kernels do for the inputs that some call had last.
  int fused() const;

 private:
  struct Learnt;
  std::shared_ptr<const Learnt> find(const std::vector<at::Tensor>& places) const;
  void read(const std::vector<Seen>& places, Learnt& learnt) const;

  size_t inputs_;
  std::vector<RunCall> calls_;
  mutable std::mutex lock_;
  mutable std::vector<std::shared_ptr<const Learnt>> learnt_;  // the last one used first
};

}  // namespace graphmode
