// Runs of recorded calls that one row kernel does as well, bit for bit.
#pragma once

#include <optional>
#include <ostream>

#include "row_kernel.h"
#include "tape.h"

namespace graphmode {

struct RowChain {
  int begin = 0, end = 0;  // nodes, the last one included
  std::shared_ptr<const RowProgram> program;
  std::vector<int> places;  // values, one per place of the program
  std::vector<int> inside;  // buffers that only the chain uses: they need no memory
};

// Whether a call of that name, which gives new memory, may fit with the right arguments.
bool is_row_call(const std::string& name);

// Arguments but tensors, each number by its bits.
void describe_arguments(std::ostream& to, at::ArrayRef<c10::IValue> args);

// In program order, at most so many. Kinds and lifetimes of buffers have to be known.
std::vector<RowChain> find_row_chains(const Tape& tape, int most);

// The chain that begins at `node`, of at most the nodes up to `end`; nothing where it has fewer calls than `fewest`.
// `keep`: every call's result is stored. `like`: of as many rows and columns; else as the first call has.
std::optional<RowChain> read_row_chain(const Tape& tape, int node, int end, bool keep, int fewest = 2,
                                       const RowProgram* like = nullptr);

// The calls of a chain over other numbers of rows and columns: each value with as many dimensions as it has, all rows
// in one of them, and memory of its own. Nothing where the same program would not do them.
struct OnRows {
  Tape tape;
  RowChain chain;
};
std::optional<OnRows> on_rows(const Tape& tape, const RowChain& chain, int64_t rows, int64_t columns);

// How many of the chain's calls, from its first, have the bits that they give one by one, on several sets of values.
// Sets the program's lanes to those of ATen's sums here. Remembers the answer by what the calls are, for one row or for
// any number of them.
int prove_row_chain(const Tape& tape, RowChain& chain);

}  // namespace graphmode
