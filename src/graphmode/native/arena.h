// The one block of memory that intermediates of all graphs of the process share, leased to each replay in flight.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graphmode {

struct Block;

class Lease {
 public:
  explicit Lease(size_t bytes);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  char* base() const;
  // Differs from that of any other block that ever lay at the same address.
  uint64_t serial() const;

 private:
  Block* block_;
};

// What one graph needs, for as long as the graph lives: blocks larger than any living graph's need are freed.
class Need {
 public:
  explicit Need(size_t bytes);
  ~Need();
  Need(const Need&) = delete;
  Need& operator=(const Need&) = delete;

 private:
  size_t bytes_;
};

size_t arena_bytes();  // held now, leased or not
size_t arena_blocks();

}  // namespace graphmode
