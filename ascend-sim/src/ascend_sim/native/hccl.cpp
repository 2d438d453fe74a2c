// Collectives as tasks of a stream: they run in the stream's turn, are kept by a graph that is captured, and wait for
// the other ranks while the host goes on.
#include "hccl.h"

#include <cstring>
#include <set>

namespace sim::hccl {

namespace {
struct Range {
  const void* address;
  uint64_t bytes;
};

// Gives a call to a stream. `run` throws Failure.
HcclResult launch(const char* function, HcclComm handle, aclrtStream stream, std::vector<Range> ranges,
                  std::function<void(Communicator&)> run) {
  Held comm = held_by(handle, function);
  if (!comm)
    return HCCL_E_PTR;
  if (comm->suspended)
    return refuse(HCCL_E_SUSPENDING, "%s: the communicator is suspended", function);
  const auto on = stream_of(stream);
  if (!on)
    return HCCL_E_RUNTIME;
  if (on->device != comm->device) {
    return refuse(HCCL_E_PARA, "%s: the communicator is of device %d, the stream of device %d", function, comm->device,
                  on->device);
  }
  double bytes = 0;
  for (const Range& range : ranges)
    bytes += static_cast<double>(range.bytes);
  auto work = [comm, ranges = std::move(ranges), run = std::move(run)]() -> Outcome {
    std::lock_guard<std::mutex> lock(comm->running);
    try {
      if (comm->broken)
        throw Failure(comm->why);
      for (const Range& range : ranges) {
        if (range.bytes > 0 && memory::device_of(range.address, range.bytes) < 0) {
          throw Failure{ACL_ERROR_RT_DEVICE_MEM_ERROR, HCCL_E_MEMORY,
                        "it uses " + std::to_string(range.bytes) +
                            " bytes of device memory that is not allocated: a stale address, or one of the host"};
        }
      }
      run(*comm);
      return {};
    } catch (const Failure& failure) {
      if (!comm->broken) {
        comm->why = failure;
        comm->broken = true;
        comm->links.leave();  // bytes may be on their way that nobody will read
      }
      return {failure.code, failure.text};
    }
  };
  const aclError refused = submit(stream, std::make_shared<Task>(Task{Kind::collective, function, work, bytes}));
  return refused == 0 ? HCCL_SUCCESS : HCCL_E_RUNTIME;
}

char* at(const void* base, uint64_t bytes) {
  return static_cast<char*>(memory::host(base)) + bytes;
}

// Where each rank's part of a buffer lies, in elements.
struct Parts {
  std::vector<uint64_t> count, offset;

  uint64_t end() const {
    uint64_t found = 0;
    for (size_t i = 0; i < count.size(); ++i)
      found = std::max(found, count[i] == 0 ? 0 : offset[i] + count[i]);
    return found;
  }
};

Parts equal(uint32_t ranks, uint64_t count) {
  Parts parts;
  for (uint32_t i = 0; i < ranks; ++i)
    parts.count.push_back(count), parts.offset.push_back(i * count);
  return parts;
}

Parts spread(uint32_t ranks, uint64_t count) {
  Parts parts;
  for (uint64_t i = 0; i < ranks; ++i) {
    const uint64_t from = count * i / ranks;
    parts.offset.push_back(from), parts.count.push_back(count * (i + 1) / ranks - from);
  }
  return parts;
}

Parts only(uint32_t ranks, uint32_t root, uint64_t count) {
  Parts parts{std::vector<uint64_t>(ranks, 0), std::vector<uint64_t>(ranks, 0)};
  parts.count[root] = count;
  return parts;
}

Parts given(uint32_t ranks, const void* counts, const void* offsets) {
  const auto* c = static_cast<const uint64_t*>(counts);
  const auto* o = static_cast<const uint64_t*>(offsets);
  return {{c, c + ranks}, {o, o + ranks}};
}

// Each rank's part of all inputs, reduced on that rank.
void reduce_parts(Links& links, const char* in, const Parts& parts, char* out, HcclDataType dtype, HcclReduceOp op) {
  const size_t size = bytes_of(dtype);
  const uint64_t mine = parts.count[links.rank];
  std::vector<char> scratch(links.ranks * mine * size);
  Pieces sends, receives;
  std::vector<const void*> inputs(links.ranks, in + parts.offset[links.rank] * size);
  for (const uint32_t peer : links.others()) {
    char* theirs = scratch.data() + peer * mine * size;
    sends.push_back({peer, in + parts.offset[peer] * size, parts.count[peer] * size, dtype});
    receives.push_back({peer, theirs, mine * size, dtype});
    inputs[peer] = theirs;
  }
  links.move(sends, receives);
  reduce(dtype, op, out, inputs, mine);
}

// Each rank's part, which it has in `mine`, to all.
void gather_parts(Links& links, const char* mine, const Parts& parts, char* out, HcclDataType dtype) {
  const size_t size = bytes_of(dtype);
  const uint64_t own = parts.count[links.rank] * size;
  Pieces sends, receives;
  for (const uint32_t peer : links.others()) {
    sends.push_back({peer, mine, own, dtype});
    receives.push_back({peer, out + parts.offset[peer] * size, parts.count[peer] * size, dtype});
  }
  links.move(sends, receives);
  char* place = out + parts.offset[links.rank] * size;
  if (own > 0 && place != mine)
    memmove(place, mine, own);
}

HcclResult not_known(const char* function, HcclDataType dtype) {
  return refuse(HCCL_E_PARA, "%s: no data type %d", function, static_cast<int>(dtype));
}

HcclResult not_reduced(const char* function, HcclDataType dtype, HcclReduceOp op) {
  return refuse(HCCL_E_NOT_SUPPORT, "%s: the device does not reduce %s by %s", function, name_of(dtype), name_of(op));
}

bool reducible(HcclDataType dtype, HcclReduceOp op) {
  return can_reduce(dtype) && op >= HCCL_REDUCE_SUM && op <= HCCL_REDUCE_MIN;
}

// What is sent to each rank and received from each.
HcclResult exchange(const char* function, HcclComm handle, aclrtStream stream, const void* send, const Parts& sent,
                    HcclDataType send_type, const void* receive, const Parts& received, HcclDataType receive_type) {
  const size_t in = bytes_of(send_type), out = bytes_of(receive_type);
  if (in == 0 || out == 0)
    return not_known(function, in == 0 ? send_type : receive_type);
  auto run = [=](Communicator& comm) {
    Links& links = comm.links;
    Pieces sends, receives;
    std::vector<uint32_t> all;
    for (uint32_t peer = 0; peer < links.ranks; ++peer) {
      all.push_back(peer);
      sends.push_back({peer, at(send, sent.offset[peer] * in), sent.count[peer] * in, send_type});
      receives.push_back({peer, at(receive, received.offset[peer] * out), received.count[peer] * out, receive_type});
    }
    links.agree({Call::all_to_all}, all, sends, receives);
    links.move(sends, receives);
  };
  return launch(function, handle, stream, {{send, sent.end() * in}, {receive, received.end() * out}}, run);
}

// --- groups of point-to-point calls

struct Grouped {
  HcclComm comm;
  aclrtStream stream;
  HcclSendRecvItem item;
};
thread_local int open_groups = 0;
thread_local std::vector<Grouped> grouped;

HcclResult point_to_point(const char* function, const std::vector<HcclSendRecvItem>& items, HcclComm handle,
                          aclrtStream stream) {
  Held comm = held_by(handle, function);
  if (!comm)
    return HCCL_E_PTR;
  std::vector<Range> ranges;
  for (const auto& item : items) {
    if (bytes_of(item.dataType) == 0)
      return not_known(function, item.dataType);
    if (item.remoteRank >= comm->links.ranks)
      return refuse(HCCL_E_PARA, "%s: rank %u of %u", function, item.remoteRank, comm->links.ranks);
    ranges.push_back({item.buf, item.count * bytes_of(item.dataType)});
  }
  return launch(function, handle, stream, ranges, [items](Communicator& with) {
    Pieces sends, receives;
    std::set<uint32_t> peers;
    for (const auto& item : items) {
      peers.insert(item.remoteRank);
      (item.sendRecvType == HCCL_SEND ? sends : receives)
          .push_back({item.remoteRank, at(item.buf, 0), item.count * bytes_of(item.dataType), item.dataType});
    }
    with.links.agree({Call::point_to_point}, {peers.begin(), peers.end()}, sends, receives);
    with.links.move(sends, receives);
  });
}

HcclResult one_item(const char* function, HcclSendRecvItem item, HcclComm comm, aclrtStream stream) {
  if (open_groups == 0)
    return point_to_point(function, {item}, comm, stream);
  grouped.push_back({comm, stream, item});
  return HCCL_SUCCESS;
}
}  // namespace

size_t bytes_of(HcclDataType dtype) {
  static const size_t sizes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2, 16, 0, 1, 1, 1, 1};
  return static_cast<size_t>(dtype) < std::size(sizes) ? sizes[dtype] : 0;
}

const char* name_of(HcclDataType dtype) {
  static const char* names[] = {"int8",   "int16", "int32",  "float16", "float32", "int64",
                                "uint64", "uint8", "uint16", "uint32",  "float64", "bfloat16",
                                "int128", "",      "hif8",   "fp8e4m3", "fp8e5m2", "fp8e8m0"};
  return static_cast<size_t>(dtype) < std::size(names) ? names[dtype] : "an unknown type";
}

const char* name_of(HcclReduceOp op) {
  static const char* names[] = {"sum", "prod", "max", "min"};
  return static_cast<size_t>(op) < std::size(names) ? names[op] : "an unknown operation";
}

}  // namespace sim::hccl

using namespace sim;
using namespace sim::hccl;

// --- collectives

EXPORT HcclResult HcclAllReduce(void* send, void* receive, uint64_t count, HcclDataType dtype, HcclReduceOp op,
                                HcclComm comm, aclrtStream stream) {
  API(HcclAllReduce);
  if (!reducible(dtype, op))
    return not_reduced("HcclAllReduce", dtype, op);
  const uint64_t bytes = count * bytes_of(dtype);
  return launch("HcclAllReduce", comm, stream, {{send, bytes}, {receive, bytes}}, [=](Communicator& with) {
    Links& links = with.links;
    links.agree({Call::all_reduce, dtype, op, UINT32_MAX, count}, links.others(), {}, {});
    const Parts parts = spread(links.ranks, count);
    char* mine = at(receive, parts.offset[links.rank] * bytes_of(dtype));
    reduce_parts(links, at(send, 0), parts, mine, dtype, op);
    gather_parts(links, mine, parts, at(receive, 0), dtype);
  });
}

EXPORT HcclResult HcclReduce(void* send, void* receive, uint64_t count, HcclDataType dtype, HcclReduceOp op,
                             uint32_t root, HcclComm comm, aclrtStream stream) {
  API(HcclReduce);
  if (!reducible(dtype, op))
    return not_reduced("HcclReduce", dtype, op);
  const Held held = held_by(comm, "HcclReduce");
  if (!held)
    return HCCL_E_PTR;
  if (root >= held->links.ranks)
    return refuse(HCCL_E_PARA, "HcclReduce: root %u of %u ranks", root, held->links.ranks);
  const uint64_t bytes = count * bytes_of(dtype), out = held->links.rank == root ? bytes : 0;
  return launch("HcclReduce", comm, stream, {{send, bytes}, {receive, out}}, [=](Communicator& with) {
    Links& links = with.links;
    links.agree({Call::reduce, dtype, op, root, count}, links.others(), {}, {});
    reduce_parts(links, at(send, 0), only(links.ranks, root, count), at(receive, 0), dtype, op);
  });
}

EXPORT HcclResult HcclReduceScatter(void* send, void* receive, uint64_t count, HcclDataType dtype, HcclReduceOp op,
                                    HcclComm comm, aclrtStream stream) {
  API(HcclReduceScatter);
  if (!reducible(dtype, op))
    return not_reduced("HcclReduceScatter", dtype, op);
  const Held held = held_by(comm, "HcclReduceScatter");
  if (!held)
    return HCCL_E_PTR;
  const uint64_t bytes = count * bytes_of(dtype);
  return launch("HcclReduceScatter", comm, stream, {{send, bytes * held->links.ranks}, {receive, bytes}},
                [=](Communicator& with) {
                  Links& links = with.links;
                  links.agree({Call::reduce_scatter, dtype, op, UINT32_MAX, count}, links.others(), {}, {});
                  reduce_parts(links, at(send, 0), equal(links.ranks, count), at(receive, 0), dtype, op);
                });
}

EXPORT HcclResult HcclReduceScatterV(void* send, const void* counts, const void* offsets, void* receive, uint64_t count,
                                     HcclDataType dtype, HcclReduceOp op, HcclComm comm, aclrtStream stream) {
  API(HcclReduceScatterV);
  if (!reducible(dtype, op))
    return not_reduced("HcclReduceScatterV", dtype, op);
  const Held held = held_by(comm, "HcclReduceScatterV");
  if (!held || counts == nullptr || offsets == nullptr)
    return HCCL_E_PTR;
  const Parts parts = given(held->links.ranks, counts, offsets);
  if (parts.count[held->links.rank] != count)
    return refuse(HCCL_E_PARA, "HcclReduceScatterV: expected %llu elements, got a place for %llu",
                  static_cast<unsigned long long>(parts.count[held->links.rank]),
                  static_cast<unsigned long long>(count));
  const size_t size = bytes_of(dtype);
  return launch("HcclReduceScatterV", comm, stream, {{send, parts.end() * size}, {receive, count * size}},
                [=](Communicator& with) {
                  Links& links = with.links;
                  Pieces sends, receives;
                  for (const uint32_t peer : links.others()) {
                    sends.push_back({peer, nullptr, parts.count[peer] * size, dtype});
                    receives.push_back({peer, nullptr, count * size, dtype});
                  }
                  links.agree({Call::reduce_scatter_v, dtype, op}, links.others(), sends, receives);
                  reduce_parts(links, at(send, 0), parts, at(receive, 0), dtype, op);
                });
}

EXPORT HcclResult HcclAllGather(void* send, void* receive, uint64_t count, HcclDataType dtype, HcclComm comm,
                                aclrtStream stream) {
  API(HcclAllGather);
  const Held held = held_by(comm, "HcclAllGather");
  if (!held)
    return HCCL_E_PTR;
  if (bytes_of(dtype) == 0)
    return not_known("HcclAllGather", dtype);
  const uint64_t bytes = count * bytes_of(dtype);
  return launch(
      "HcclAllGather", comm, stream, {{send, bytes}, {receive, bytes * held->links.ranks}}, [=](Communicator& with) {
        Links& links = with.links;
        links.agree({Call::all_gather, dtype, HCCL_REDUCE_RESERVED, UINT32_MAX, count}, links.others(), {}, {});
        gather_parts(links, at(send, 0), equal(links.ranks, count), at(receive, 0), dtype);
      });
}

EXPORT HcclResult HcclAllGatherV(void* send, uint64_t count, void* receive, const void* counts, const void* offsets,
                                 HcclDataType dtype, HcclComm comm, aclrtStream stream) {
  API(HcclAllGatherV);
  const Held held = held_by(comm, "HcclAllGatherV");
  if (!held || counts == nullptr || offsets == nullptr)
    return HCCL_E_PTR;
  if (bytes_of(dtype) == 0)
    return not_known("HcclAllGatherV", dtype);
  const Parts parts = given(held->links.ranks, counts, offsets);
  if (parts.count[held->links.rank] != count)
    return refuse(HCCL_E_PARA, "HcclAllGatherV: expected %llu elements, got %llu",
                  static_cast<unsigned long long>(parts.count[held->links.rank]),
                  static_cast<unsigned long long>(count));
  const size_t size = bytes_of(dtype);
  return launch("HcclAllGatherV", comm, stream, {{send, count * size}, {receive, parts.end() * size}},
                [=](Communicator& with) {
                  Links& links = with.links;
                  Pieces sends, receives;
                  for (const uint32_t peer : links.others()) {
                    sends.push_back({peer, nullptr, count * size, dtype});
                    receives.push_back({peer, nullptr, parts.count[peer] * size, dtype});
                  }
                  links.agree({Call::all_gather_v, dtype}, links.others(), sends, receives);
                  gather_parts(links, at(send, 0), parts, at(receive, 0), dtype);
                });
}

// From one rank to each, or the same to all.
namespace {
HcclResult from_root(const char* function, Call call, const void* send, bool same, void* receive, uint64_t count,
                     HcclDataType dtype, uint32_t root, HcclComm comm, aclrtStream stream) {
  const Held held = held_by(comm, function);
  if (!held)
    return HCCL_E_PTR;
  if (bytes_of(dtype) == 0)
    return not_known(function, dtype);
  if (root >= held->links.ranks)
    return refuse(HCCL_E_PARA, "%s: root %u of %u ranks", function, root, held->links.ranks);
  const uint64_t bytes = count * bytes_of(dtype);
  const bool first = held->links.rank == root;
  const uint64_t sent = !first ? 0 : same ? bytes : bytes * held->links.ranks;
  return launch(function, comm, stream, {{send, sent}, {receive, bytes}}, [=](Communicator& with) {
    Links& links = with.links;
    const auto peers = first ? links.others() : std::vector<uint32_t>{root};
    links.agree({call, dtype, HCCL_REDUCE_RESERVED, root, count}, peers, {}, {});
    Pieces sends, receives = {{root, at(receive, 0), bytes, dtype}};
    for (uint32_t peer = 0; first && peer < links.ranks; ++peer)
      sends.push_back({peer, at(send, same ? 0 : peer * bytes), bytes, dtype});
    links.move(sends, receives);
  });
}
}  // namespace

EXPORT HcclResult HcclBroadcast(void* buffer, uint64_t count, HcclDataType dtype, uint32_t root, HcclComm comm,
                                aclrtStream stream) {
  API(HcclBroadcast);
  return from_root("HcclBroadcast", Call::broadcast, buffer, true, buffer, count, dtype, root, comm, stream);
}

EXPORT HcclResult HcclScatter(void* send, void* receive, uint64_t count, HcclDataType dtype, uint32_t root,
                              HcclComm comm, aclrtStream stream) {
  API(HcclScatter);
  return from_root("HcclScatter", Call::scatter, send, false, receive, count, dtype, root, comm, stream);
}

EXPORT HcclResult HcclBarrier(HcclComm comm, aclrtStream stream) {
  API(HcclBarrier);
  return launch("HcclBarrier", comm, stream, {},
                [](Communicator& with) { with.links.agree({Call::barrier}, with.links.others(), {}, {}); });
}

EXPORT HcclResult HcclAlltoAll(const void* send, uint64_t send_count, HcclDataType send_type, const void* receive,
                               uint64_t receive_count, HcclDataType receive_type, HcclComm comm, aclrtStream stream) {
  API(HcclAlltoAll);
  const Held held = held_by(comm, "HcclAlltoAll");
  if (!held)
    return HCCL_E_PTR;
  return exchange("HcclAlltoAll", comm, stream, send, equal(held->links.ranks, send_count), send_type, receive,
                  equal(held->links.ranks, receive_count), receive_type);
}

EXPORT HcclResult HcclAlltoAllV(const void* send, const void* send_counts, const void* send_offsets,
                                HcclDataType send_type, const void* receive, const void* receive_counts,
                                const void* receive_offsets, HcclDataType receive_type, HcclComm comm,
                                aclrtStream stream) {
  API(HcclAlltoAllV);
  const Held held = held_by(comm, "HcclAlltoAllV");
  if (!held || send_counts == nullptr || send_offsets == nullptr || receive_counts == nullptr ||
      receive_offsets == nullptr)
    return HCCL_E_PTR;
  return exchange("HcclAlltoAllV", comm, stream, send, given(held->links.ranks, send_counts, send_offsets), send_type,
                  receive, given(held->links.ranks, receive_counts, receive_offsets), receive_type);
}

EXPORT HcclResult HcclAlltoAllVC(const void* send, const void* matrix, HcclDataType send_type, const void* receive,
                                 HcclDataType receive_type, HcclComm comm, aclrtStream stream) {
  API(HcclAlltoAllVC);
  const Held held = held_by(comm, "HcclAlltoAllVC");
  if (!held || matrix == nullptr)
    return HCCL_E_PTR;
  const uint32_t ranks = held->links.ranks, rank = held->links.rank;
  const auto* counts = static_cast<const uint64_t*>(matrix);  // [sender][receiver]
  Parts sent, received;
  uint64_t sent_end = 0, received_end = 0;
  for (uint32_t peer = 0; peer < ranks; ++peer) {
    sent.count.push_back(counts[rank * ranks + peer]), sent.offset.push_back(sent_end);
    received.count.push_back(counts[peer * ranks + rank]), received.offset.push_back(received_end);
    sent_end += sent.count.back(), received_end += received.count.back();
  }
  return exchange("HcclAlltoAllVC", comm, stream, send, sent, send_type, receive, received, receive_type);
}

// --- from one rank to another: each waits for the other

EXPORT HcclResult HcclSend(void* buffer, uint64_t count, HcclDataType dtype, uint32_t to, HcclComm comm,
                           aclrtStream stream) {
  API(HcclSend);
  return one_item("HcclSend", {HCCL_SEND, buffer, count, dtype, to}, comm, stream);
}

EXPORT HcclResult HcclRecv(void* buffer, uint64_t count, HcclDataType dtype, uint32_t from, HcclComm comm,
                           aclrtStream stream) {
  API(HcclRecv);
  return one_item("HcclRecv", {HCCL_RECV, buffer, count, dtype, from}, comm, stream);
}

EXPORT HcclResult HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm comm, aclrtStream stream) {
  API(HcclBatchSendRecv);
  if (items == nullptr)
    return refuse(HCCL_E_PTR, "HcclBatchSendRecv: expected what to send and receive");
  return point_to_point("HcclBatchSendRecv", {items, items + count}, comm, stream);
}

EXPORT HcclResult HcclGroupStart() {
  API(HcclGroupStart);
  ++open_groups;
  return HCCL_SUCCESS;
}

EXPORT HcclResult HcclGroupEnd() {
  API(HcclGroupEnd);
  if (open_groups == 0)
    return refuse(HCCL_E_PARA, "HcclGroupEnd: no group was begun in this thread");
  if (--open_groups > 0)
    return HCCL_SUCCESS;
  std::vector<Grouped> all;
  std::swap(all, grouped);
  while (!all.empty()) {
    const Grouped first = all.front();
    std::vector<HcclSendRecvItem> items;
    std::vector<Grouped> rest;
    for (const Grouped& one : all) {
      if (one.comm == first.comm && one.stream == first.stream) {
        items.push_back(one.item);
      } else {
        rest.push_back(one);
      }
    }
    if (const HcclResult failed = point_to_point("HcclBatchSendRecv", items, first.comm, first.stream))
      return failed;
    std::swap(all, rest);
  }
  return HCCL_SUCCESS;
}
