// What the parts of libhccl.so share: sockets between ranks, what ranks must agree on, and reductions.
#pragma once

#include <sys/uio.h>

#include <atomic>

#include "core.h"
#include "hccl/hccl.h"

namespace sim::hccl {

// Why a collective, or the making of a communicator, failed.
struct Failure {
  int code;  // of the stream's task
  HcclResult result;
  std::string text;
};

size_t bytes_of(HcclDataType dtype);  // 0 for one that is not known
const char* name_of(HcclDataType dtype);
const char* name_of(HcclReduceOp op);

// Of one call, the same on all ranks that take part; `point_to_point` instead says what is sent and received.
enum class Call : uint32_t {
  all_reduce,
  broadcast,
  all_gather,
  all_gather_v,
  reduce_scatter,
  reduce_scatter_v,
  all_to_all,
  reduce,
  scatter,
  barrier,
  point_to_point
};
struct Terms {
  Call call;
  HcclDataType dtype = HCCL_DATA_TYPE_RESERVED;
  HcclReduceOp op = HCCL_REDUCE_RESERVED;
  uint32_t root = UINT32_MAX;
  uint64_t count = 0;
};

struct Piece {
  uint32_t peer;
  const void* at;  // written where it is received
  uint64_t bytes;
  HcclDataType dtype;
};
using Pieces = std::vector<Piece>;

// A socket to every other rank.
class Links {
 public:
  // Waits for all ranks; `meeting` is a name that they share. Throws Failure.
  Links(const std::string& meeting, const std::string& group, uint32_t rank, uint32_t ranks, int device);
  ~Links();

  // Sees that these ranks are at the same call, and that what is sent is what is expected. Throws Failure.
  void agree(const Terms& terms, const std::vector<uint32_t>& peers, const Pieces& sends, const Pieces& receives);
  // Moves bytes, in order between two ranks. Throws Failure.
  void move(const Pieces& sends, const Pieces& receives);
  // Other ranks see that this one has left; so does a call that is running.
  void leave();

  std::vector<uint32_t> others() const;

  const std::string group;
  const uint32_t rank, ranks;
  double patience;  // seconds without a byte from any rank

 private:
  std::vector<int> sockets_;  // by rank; -1 for this one
  std::atomic<bool> left_{false};
};

// Element by element, in the order of ranks; 16-bit floats are accumulated in float and rounded once. `out` may be one
// of the inputs.
void reduce(HcclDataType dtype, HcclReduceOp op, void* out, const std::vector<const void*>& inputs, uint64_t count);
bool can_reduce(HcclDataType dtype);

// One rank's end of a group.
struct Communicator {
  Communicator(std::string at, const std::string& group, uint32_t rank, uint32_t ranks, int on)
      : meeting(std::move(at)), device(on), links(meeting, group, rank, ranks, on) {}

  const std::string meeting;
  const int device;
  Links links;
  std::mutex running;  // one call at a time: its bytes go through the same sockets
  std::atomic<bool> suspended{false}, broken{false}, told{false};
  Failure why = {};  // it is broken: set before, and once
};
using Held = std::shared_ptr<Communicator>;

struct Communicators {
  std::mutex m;
  std::unordered_map<void*, Held> live;
};
Communicators& communicators();
// The communicator of a handle; null, with the reason said, where there is none.
Held held_by(HcclComm handle, const char* function);
// Says why a call is refused, and gives the code back.
HcclResult refuse(HcclResult result, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace sim::hccl
