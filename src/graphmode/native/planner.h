// Where each buffer lies in the arena: a pure function from lifetimes to offsets.
#pragma once

#include <cstdint>
#include <vector>

namespace graphmode {

struct Lifetime {
  int64_t bytes;
  int first, last;  // both ends in use
};

struct Placement {
  std::vector<int64_t> offsets;  // 64-byte aligned, as the CPU allocator's addresses are
  int64_t total = 0;
};

// Largest first, each at the lowest gap among those alive with it (Pisarchyk and Lee, 2020, "greedy by size").
Placement place_by_size(const std::vector<Lifetime>& lifetimes);
// In the order of allocation, each at the best-fitting gap.
Placement place_by_time(const std::vector<Lifetime>& lifetimes);
// The smaller of both.
Placement place(const std::vector<Lifetime>& lifetimes);

}  // namespace graphmode
