// Which tier may run a node: a faster way is taken only after it gave eager's bits, sizes and strides on two sets of
// values.
#pragma once

#include "tape.h"

namespace graphmode {

class Proof {
 public:
  // Before the call: args hold the tensors as eager will see them.
  static Proof begin(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args, const Node& node);
  // After the call, with eager's results: sets node.tier, node.held, node.out_op and node.note.
  void end(at::ArrayRef<c10::IValue> results, Node& node);

 private:
  std::string key_;
  bool known_ = false;
  bool candidate_ = false;
  std::vector<c10::IValue> before_;  // written arguments as they were; others alias the caller's
};

// The out-overload whose arguments are those of a functional overload followed by outputs, if the CPU has a kernel for
// it.
std::optional<c10::OperatorHandle> out_variant(const c10::OperatorHandle& op);

// Forgets what was proved (tests), of single calls and of rows of calls.
void forget_proofs();
void forget_row_proofs();
// How many of those were made so far.
int row_proofs();

}  // namespace graphmode
