// Between ranks: Unix sockets without a file, so that nothing is left behind and a rank that ends is seen at once.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "hccl.h"

namespace sim::hccl {

namespace {
using Clock = std::chrono::steady_clock;

double seconds(const char* name, double otherwise) {
  const char* value = getenv(name);
  const double found = value == nullptr ? 0 : strtod(value, nullptr);
  return found > 0 ? found : otherwise;
}

std::string number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%g", value);
  return text;
}

// What one rank has for another, and wants of it.
struct Flow {
  int socket;
  uint32_t peer;
  std::vector<iovec> out = {}, in = {};
  size_t sent = 0, got = 0;  // whole parts of them
  bool gone = false;

  bool sending() const {
    return !gone && sent < out.size();
  }
  bool receiving() const {
    return got < in.size();
  }
};

void advance(std::vector<iovec>& parts, size_t* done, size_t bytes) {
  while (*done < parts.size() && bytes >= parts[*done].iov_len)
    bytes -= parts[(*done)++].iov_len;
  if (bytes > 0) {
    parts[*done].iov_base = static_cast<char*>(parts[*done].iov_base) + bytes;
    parts[*done].iov_len -= bytes;
  }
}

constexpr size_t MOST_PARTS = 64;  // in one call of the kernel

// One attempt in one direction; false where nothing could be moved.
bool attempt(Flow& flow, bool out) {
  auto& parts = out ? flow.out : flow.in;
  size_t& done = out ? flow.sent : flow.got;
  msghdr message = {};
  message.msg_iov = parts.data() + done;
  message.msg_iovlen = std::min(parts.size() - done, MOST_PARTS);
  const ssize_t moved = out ? sendmsg(flow.socket, &message, MSG_NOSIGNAL) : recvmsg(flow.socket, &message, 0);
  if (moved > 0) {
    advance(parts, &done, static_cast<size_t>(moved));
    return true;
  }
  if (moved == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
    flow.gone = true;  // what it sent before may still be read
    if (!out)
      flow.in.resize(flow.got);
  }
  return false;
}

// All flows at once, until they are done. False where no byte came for so long; then `late` is a rank that is missing.
bool move_all(std::vector<Flow>& flows, double patience, uint32_t* late) {
  auto moved = Clock::now();
  std::vector<pollfd> waits;
  while (true) {
    bool any = false;
    for (Flow& flow : flows) {
      while (flow.sending() && attempt(flow, true))
        any = true;
      while (flow.receiving() && attempt(flow, false))
        any = true;
    }
    waits.clear();
    for (const Flow& flow : flows) {
      const auto events = static_cast<short>((flow.sending() ? POLLOUT : 0) | (flow.receiving() ? POLLIN : 0));
      if (events != 0)
        waits.push_back({flow.socket, events, 0}), *late = flow.peer;
    }
    if (waits.empty())
      return true;
    const auto now = Clock::now();
    if (any)
      moved = now;
    const double left = patience - std::chrono::duration<double>(now - moved).count();
    if (left <= 0)
      return false;
    poll(waits.data(), waits.size(), static_cast<int>(std::min(left * 1e3 + 1, 1e6)));
  }
}

std::vector<Flow>& trimmed(std::vector<Flow>& flows) {  // parts without bytes would read as an end
  for (Flow& flow : flows) {
    for (auto* parts : {&flow.out, &flow.in})
      parts->erase(std::remove_if(parts->begin(), parts->end(), [](const iovec& part) { return part.iov_len == 0; }),
                   parts->end());
  }
  return flows;
}

void* writable(const void* at) {
  return const_cast<void*>(at);
}

// --- the start

struct Hello {
  char magic[8];
  uint32_t rank, ranks;
  int32_t device;
};
constexpr char MAGIC[8] = {'h', 'c', 'c', 'l', '-', 's', 'i', 'm'};

// ASCEND_RT_VISIBLE_DEVICES numbers a process's devices anew: the n-th of its list is the device's own number.
int physical(int device) {
  const char* visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
  for (int i = 0; visible != nullptr && *visible != 0; ++i) {
    char* end = nullptr;
    const long number = strtol(visible, &end, 10);
    if (end == visible)
      break;
    if (i == device)
      return static_cast<int>(number);
    visible = *end == ',' ? end + 1 : end;
  }
  return device;
}

sockaddr_un address_of(const std::string& meeting, uint32_t rank, socklen_t* length) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;  // a name that begins with 0 is no file
  const int written =
      snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "ascend-sim-hccl-%s-%u", meeting.c_str(), rank);
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(written));
  return address;
}

int new_socket() {
  const int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (made < 0)
    throw Failure{ACL_ERROR_RT_INTERNAL_ERROR, HCCL_E_SYSCALL, std::string("socket: ") + strerror(errno)};
  const int room = 4 << 20;  // as much of it as the host gives
  setsockopt(made, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  return made;
}

struct Closing {
  int socket;
  ~Closing() {
    if (socket >= 0)
      close(socket);
  }
  int release() {
    return std::exchange(socket, -1);
  }
};
}  // namespace

Links::Links(const std::string& meeting, const std::string& group_name, uint32_t my_rank, uint32_t all, int device)
    : group(group_name),
      rank(my_rank),
      ranks(all),
      patience(seconds("HCCL_EXEC_TIMEOUT", config().patience)),
      sockets_(all, -1) {
  const double limit = seconds("HCCL_CONNECT_TIMEOUT", 120);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit));
  const auto left = [&] { return std::chrono::duration<double>(end - Clock::now()).count(); };
  const auto missing = [&](uint32_t peer) {
    return Failure{ACL_ERROR_RT_FFTS_PLUS_TIMEOUT, HCCL_E_TIMEOUT,
                   "EI0006: rank " + std::to_string(rank) + " of group " + group + " waited " + number(limit) +
                       " s (HCCL_CONNECT_TIMEOUT) for rank " + std::to_string(peer) + ", of " + std::to_string(ranks)};
  };

  Closing listener{new_socket()};
  socklen_t length = 0;
  sockaddr_un address = address_of(meeting, rank, &length);
  while (bind(listener.socket, reinterpret_cast<sockaddr*>(&address), length) != 0) {
    if (errno != EADDRINUSE || left() <= limit / 2) {  // sooner than the one that is there gives up
      throw Failure{ACL_ERROR_RT_INTERNAL_ERROR, HCCL_E_PARA,
                    "rank " + std::to_string(rank) + " of group " + group + " is there already: " + strerror(errno)};
    }
    poll(nullptr, 0, 5);  // of a communicator that is being made at the same place: it closes in a moment
  }
  listen(listener.socket, static_cast<int>(ranks));

  Hello mine = {};
  memcpy(mine.magic, MAGIC, sizeof MAGIC);
  mine.rank = rank, mine.ranks = ranks, mine.device = physical(device);
  const auto meet = [&](int socket, Hello* theirs) {
    std::vector<Flow> flows(1, Flow{socket, 0});
    flows[0].out = {{&mine, sizeof mine}}, flows[0].in = {{theirs, sizeof *theirs}};
    uint32_t late = 0;
    return move_all(flows, std::max(left(), 0.001), &late) && !flows[0].gone &&
           memcmp(theirs->magic, MAGIC, sizeof MAGIC) == 0;
  };
  try {
    const auto keep = [&](Closing& one, const Hello& theirs) {
      const std::string pair =
          "ranks " + std::to_string(rank) + " and " + std::to_string(theirs.rank) + " of group " + group + " ";
      if (theirs.ranks != ranks || theirs.rank >= ranks) {
        throw Failure{ACL_ERROR_RT_PARAM_INVALID, HCCL_E_PARA,
                      "EI0005: " + pair + "disagree: one knows of " + std::to_string(ranks) + " ranks, the other of " +
                          std::to_string(theirs.ranks)};
      }
      if (theirs.device == mine.device) {
        throw Failure{ACL_ERROR_RT_PARAM_INVALID, HCCL_E_PARA,
                      pair + "are both on device " + std::to_string(mine.device) +
                          ": a device has one rank of a group (torch.npu.set_device)"};
      }
      sockets_[theirs.rank] = one.release();
    };
    for (uint32_t peer = 0; peer < rank;) {  // to those before; those behind come
      Closing one{new_socket()};
      socklen_t size = 0;
      sockaddr_un there = address_of(meeting, peer, &size);
      Hello theirs = {};
      if (connect(one.socket, reinterpret_cast<sockaddr*>(&there), size) == 0 && meet(one.socket, &theirs)) {
        keep(one, theirs);
        ++peer;
        continue;
      }
      if (left() <= 0)
        throw missing(peer);
      poll(nullptr, 0, 5);
    }
    while (true) {
      const auto absent = std::find(sockets_.begin() + rank + 1, sockets_.end(), -1);
      if (absent == sockets_.end())
        break;
      if (left() <= 0)
        throw missing(static_cast<uint32_t>(absent - sockets_.begin()));
      pollfd wait = {listener.socket, POLLIN, 0};
      poll(&wait, 1, static_cast<int>(std::min(left() * 1e3 + 1, 1e6)));
      Closing one{accept4(listener.socket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
      Hello theirs = {};
      if (one.socket >= 0 && meet(one.socket, &theirs) && (theirs.rank >= ranks || sockets_[theirs.rank] < 0))
        keep(one, theirs);
    }
  } catch (...) {
    for (const int socket : sockets_) {
      if (socket >= 0)
        close(socket);
    }
    throw;
  }
}

Links::~Links() {
  for (const int socket : sockets_) {
    if (socket >= 0)
      close(socket);
  }
}

void Links::leave() {
  left_ = true;
  for (const int socket : sockets_) {
    if (socket >= 0)
      shutdown(socket, SHUT_RDWR);
  }
}

std::vector<uint32_t> Links::others() const {
  std::vector<uint32_t> found;
  for (uint32_t peer = 0; peer < ranks; ++peer) {
    if (peer != rank)
      found.push_back(peer);
  }
  return found;
}

// --- a call

namespace {
// What a rank says to another before a call's bytes.
struct Header {
  Terms terms;
  uint32_t sends = 0, receives = 0;
  uint64_t sent = 0, received = 0;                                  // bytes
  uint64_t sent_shape = 1469598103u, received_shape = 1469598103u;  // of sizes and dtypes, in order
};

void count(uint32_t* pieces, uint64_t* bytes, uint64_t* shape, const Piece& piece) {
  ++*pieces;
  *bytes += piece.bytes;
  *shape = (*shape * 1099511628211u) ^ (piece.bytes * 31 + static_cast<uint64_t>(piece.dtype));
}

const char* name_of(Call call) {
  static const char* names[] = {"HcclAllReduce",     "HcclBroadcast",      "HcclAllGather",       "HcclAllGatherV",
                                "HcclReduceScatter", "HcclReduceScatterV", "HcclAlltoAll",        "HcclReduce",
                                "HcclScatter",       "HcclBarrier",        "HcclSend or HcclRecv"};
  return names[static_cast<uint32_t>(call)];
}

std::string in_words(const Header& header) {
  const Terms& terms = header.terms;
  std::string text = name_of(terms.call);
  if (terms.dtype != HCCL_DATA_TYPE_RESERVED)
    text += " of " + std::to_string(terms.count) + " " + hccl::name_of(terms.dtype);
  if (terms.op != HCCL_REDUCE_RESERVED)
    text += std::string(", ") + hccl::name_of(terms.op);
  if (terms.root != UINT32_MAX)
    text += ", root " + std::to_string(terms.root);
  if (header.sends + header.receives > 0) {
    text += ", " + std::to_string(header.sent) + " bytes sent as " + std::to_string(header.sends) + " and " +
            std::to_string(header.received) + " expected as " + std::to_string(header.receives);
  }
  return text;
}

bool fit(const Header& a, const Header& b) {
  const auto terms = [](const Terms& t) { return std::make_tuple(t.call, t.dtype, t.op, t.root, t.count); };
  return terms(a.terms) == terms(b.terms) && a.sends == b.receives && a.receives == b.sends && a.sent == b.received &&
         a.received == b.sent && a.sent_shape == b.received_shape && a.received_shape == b.sent_shape;
}

std::string between(const Links& links, uint32_t peer) {
  return "rank " + std::to_string(links.rank) + " and rank " + std::to_string(peer) + " of group " + links.group;
}

Failure gone(const Links& links, uint32_t peer, bool left) {
  if (left)
    return {ACL_ERROR_RT_FFTS_PLUS_EXCEPTION, HCCL_E_UNAVAIL,
            "the communicator of group " + links.group + " was destroyed"};
  return {ACL_ERROR_RT_FFTS_PLUS_TIMEOUT, HCCL_E_REMOTE,
          "EI0002: rank " + std::to_string(peer) + " of group " + links.group +
              " is gone: its process ended, it left the group, or a call failed there"};
}

Failure timed_out(const Links& links, uint32_t peer) {
  return {ACL_ERROR_RT_FFTS_PLUS_TIMEOUT, HCCL_E_TIMEOUT,
          "EI0002: rank " + std::to_string(links.rank) + " of group " + links.group + " waited " +
              number(links.patience) + " s (HCCL_EXEC_TIMEOUT) for rank " + std::to_string(peer)};
}
}  // namespace

void Links::agree(const Terms& terms, const std::vector<uint32_t>& peers, const Pieces& sends, const Pieces& receives) {
  std::vector<Header> mine(ranks), theirs(ranks);
  for (auto& header : mine)
    header.terms = terms;
  for (const Piece& piece : sends)
    count(&mine[piece.peer].sends, &mine[piece.peer].sent, &mine[piece.peer].sent_shape, piece);
  for (const Piece& piece : receives)
    count(&mine[piece.peer].receives, &mine[piece.peer].received, &mine[piece.peer].received_shape, piece);
  std::vector<Flow> flows;
  for (const uint32_t peer : peers) {
    if (peer == rank)
      theirs[peer] = mine[peer];
    else
      flows.push_back({sockets_[peer], peer, {{&mine[peer], sizeof(Header)}}, {{&theirs[peer], sizeof(Header)}}});
  }
  uint32_t late = 0;
  const bool all = move_all(flows, patience, &late);
  std::vector<uint32_t> heard;
  for (const uint32_t peer : peers) {
    const auto flow = std::find_if(flows.begin(), flows.end(), [&](const Flow& f) { return f.peer == peer; });
    const bool complete = flow == flows.end() || (flow->got == 1 && flow->in.size() == 1);
    if (complete && !fit(mine[peer], theirs[peer])) {
      throw Failure{
          ACL_ERROR_RT_FFTS_PLUS_EXCEPTION, HCCL_E_PARA,
          "EI0005: " + between(*this, peer) + " disagree: " + in_words(mine[peer]) + "; " + in_words(theirs[peer])};
    }
  }
  for (const Flow& flow : flows) {
    if (flow.gone && flow.in.size() == 0)
      throw gone(*this, flow.peer, left_);
  }
  if (!all)
    throw timed_out(*this, late);
}

void Links::move(const Pieces& sends, const Pieces& receives) {
  std::vector<Flow> flows;
  for (uint32_t peer = 0; peer < ranks; ++peer) {
    if (peer != rank)
      flows.push_back({sockets_[peer], peer});
  }
  const auto flow_of = [&](uint32_t peer) -> Flow& { return flows[peer - (peer > rank ? 1 : 0)]; };
  for (const Piece& piece : sends) {
    if (piece.peer != rank)
      flow_of(piece.peer).out.push_back({writable(piece.at), piece.bytes});
  }
  for (const Piece& piece : receives) {
    if (piece.peer != rank)
      flow_of(piece.peer).in.push_back({writable(piece.at), piece.bytes});
  }
  std::vector<size_t> expected;
  for (const Flow& flow : trimmed(flows))
    expected.push_back(flow.in.size());
  uint32_t late = 0;
  const bool all = move_all(flows, patience, &late);
  for (size_t i = 0; i < flows.size(); ++i) {
    if (flows[i].gone && (flows[i].got < expected[i] || flows[i].sent < flows[i].out.size()))
      throw gone(*this, flows[i].peer, left_);
  }
  if (!all)
    throw timed_out(*this, late);
  const auto from_self = [&](const Piece& piece) { return piece.peer == rank; };
  auto to = std::find_if(receives.begin(), receives.end(), from_self);
  for (const Piece& piece : sends) {
    if (!from_self(piece))
      continue;
    if (piece.bytes > 0 && piece.at != to->at)
      memmove(writable(to->at), piece.at, piece.bytes);
    to = std::find_if(std::next(to), receives.end(), from_self);
  }
}

}  // namespace sim::hccl
