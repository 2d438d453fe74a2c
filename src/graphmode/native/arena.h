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

size_t arena_bytes();  // held now, leased or not
size_t arena_blocks();
void arena_release();  // frees every block that is not leased

}  // namespace graphmode
