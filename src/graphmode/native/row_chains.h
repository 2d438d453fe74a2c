// Runs of recorded calls that one row kernel does as well, bit for bit.
#pragma once

#include <optional>

#include "row_kernel.h"
#include "tape.h"

namespace graphmode {

struct RowChain {
  int begin = 0, end = 0;  // nodes, the last one included
  std::shared_ptr<const RowProgram> program;
  std::vector<int> places;  // values, one per place of the program
  std::vector<int> inside;  // buffers that only the chain uses: they need no memory
};

// In program order, at most so many. Kinds and lifetimes of buffers have to be known.
std::vector<RowChain> find_row_chains(const Tape& tape, int most);

// The chain that begins at `node`, of at most the nodes up to `end`; nothing where it has fewer calls than `fewest`.
// `keep`: every call's result is stored. `like`: of as many rows and columns; else as the first call has.
std::optional<RowChain> read_row_chain(const Tape& tape, int node, int end, bool keep, int fewest = 2,
                                       const RowProgram* like = nullptr);

// How many of the chain's calls, from its first, have the bits that they give one by one, on several sets of values.
// Sets the program's lanes to those of ATen's sums here. Remembers the answer by what the calls are and how their
// memory is laid out.
int prove_row_chain(const Tape& tape, RowChain& chain);

}  // namespace graphmode
