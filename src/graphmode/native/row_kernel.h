// One kernel for a run of calls over rows: elementwise calls, and sums over the last dimension, in float32 or bfloat16.
// A row at a time goes through all of them in registers of its own; what nobody reads later never reaches memory.
// Each element sees the operations, the order and the roundings that ATen's kernels give it. Knows nothing of graphs.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "held.h"

namespace graphmode {

enum class RowOp : uint8_t {
  Load,   // to = memory
  Store,  // memory = a, which has the memory's precision
  Round,  // to = a, rounded to bfloat16, as any step does that has `rounds`
  Add,
  Sub,
  Mul,
  Div,
  Neg,
  Abs,
  Relu,
  Square,
  Sqrt,
  Rsqrt,
  Reciprocal,
  Sum,  // over the row; `to` is one number
  Mean,
};

struct RowRegister {
  bool number = false;  // one number for the row, or an item for each column
  int index = -1;

  bool operator==(const RowRegister&) const = default;
};

struct RowStep {
  RowOp op;
  RowRegister to, a, b;
  int place = -1;  // for Load and Store
  // What `combine_steps` adds, so that a row is written as seldom as may be.
  bool rounds = false;                      // to bfloat16
  bool keeps = true;                        // some step reads `to`
  bool squares = false;                     // a sum: of the squares
  bool narrow_a = false, narrow_b = false;  // these are bfloat16 memory
  int wide_place = -1;                      // `to` is this memory, of float32
  int narrow_place = -1;                    // the result rounded goes to this memory too, of bfloat16

  bool operator==(const RowStep&) const = default;
};

// Memory that the kernel reads or writes: float32 or bfloat16, columns next to each other.
struct RowPlace {
  bool bf16 = false;
  bool number = false;
  bool written = false;
  std::vector<int64_t> rows;  // where each row begins, in elements from the tensor's first; empty: at row * step
  int64_t step = 0;           // 0: the same for all rows
};

struct RowProgram {
  int64_t rows = 0, columns = 0;
  int lanes = 0;               // items that ATen's sums add side by side
  std::vector<RowStep> first;  // once a call: loads of what is the same for all rows
  std::vector<RowStep> each;   // for each row
  std::vector<float> numbers;  // registers of one number, and what constants stand in them
  int vectors = 0;             // registers of `columns` items
  std::vector<RowPlace> places;
};

// From steps as calls say them, each with a register of its own, to fewer steps and registers.
void combine_steps(RowProgram& program);

// `places`: the address of each place's first element. Rows of much work are split over threads.
void run_row_program(const RowProgram& program, char* const* places);

// `tensors`: one per place; the kernel reads their addresses at each run.
std::unique_ptr<Kernel> make_row_kernel(std::shared_ptr<const RowProgram> program, std::vector<at::Tensor> tensors);

}  // namespace graphmode
