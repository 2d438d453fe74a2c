#include "arena.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <vector>

namespace graphmode {

struct Block {
  at::DataPtr memory;
  size_t bytes = 0;
  uint64_t serial = 0;
  bool leased = false;
};

namespace {
struct Pool {
  std::mutex mutex;
  std::vector<Block*> blocks;
  std::multiset<size_t> needs;
  uint64_t next_serial = 1;
};
// Never destroyed: a replay on another thread may outlive the statics of this file at exit.
Pool& pool() {
  static auto* p = new Pool();
  return *p;
}

template <class F>
void drop_idle(Pool& p, F&& unfit) {
  auto dropped = [&](Block* b) {
    if (b->leased || !unfit(b->bytes)) {
      return false;
    }
    delete b;
    return true;
  };
  p.blocks.erase(std::remove_if(p.blocks.begin(), p.blocks.end(), dropped), p.blocks.end());
}

void drop_what_nobody_needs(Pool& p) {
  const size_t most = p.needs.empty() ? 0 : *p.needs.rbegin();
  drop_idle(p, [&](size_t held) { return held > most; });
}
}  // namespace

Lease::Lease(size_t bytes) : block_(nullptr) {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  for (Block* b : p.blocks) {
    if (!b->leased && b->bytes >= bytes) {
      block_ = b;
      break;
    }
  }
  if (block_ == nullptr) {
    // a block too small for this graph is replaced, not kept beside the larger one
    drop_idle(p, [&](size_t held) { return held < bytes; });
    auto fresh = std::make_unique<Block>();
    fresh->memory = c10::GetCPUAllocator()->allocate(bytes);
    fresh->bytes = bytes;
    fresh->serial = p.next_serial++;
    p.blocks.push_back(fresh.get());
    block_ = fresh.release();
  }
  block_->leased = true;
}

Lease::~Lease() {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  block_->leased = false;
  drop_what_nobody_needs(p);  // its graph may have died during the replay
}

char* Lease::base() const {
  return static_cast<char*>(block_->memory.get());
}
uint64_t Lease::serial() const {
  return block_->serial;
}

size_t arena_bytes() {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  size_t sum = 0;
  for (Block* b : p.blocks) {
    sum += b->bytes;
  }
  return sum;
}
size_t arena_blocks() {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  return p.blocks.size();
}

Need::Need(size_t bytes) : bytes_(bytes) {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  p.needs.insert(bytes_);
}

Need::~Need() {
  auto& p = pool();
  std::lock_guard<std::mutex> guard(p.mutex);
  p.needs.erase(p.needs.find(bytes_));
  drop_what_nobody_needs(p);
}

}  // namespace graphmode
