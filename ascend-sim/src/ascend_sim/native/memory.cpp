// Device memory on the host. Each device has one file in memory of the size of its HBM, and a range of addresses for
// it. In check mode these addresses may not be touched; the emulation itself uses a second mapping of the same file.
//
//   [ plain: aclrtMalloc, offset = offset in the file ][ reserved: aclrtReserveMemAddress, mapped in pieces ]
//   [ the same again, readable and writable, SHIFT bytes further (check mode only)                          ]
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "core.h"
#include "sim.h"

namespace sim::memory {
namespace {

constexpr size_t GRAIN = 512;     // aclrtMalloc's alignment
constexpr size_t PAGE = 2 << 20;  // of physical memory
constexpr size_t RED = 4096;      // canary behind each allocation, in check mode
constexpr unsigned char CANARY = 0xA5, FRESH = 0xFF;

// Offsets in use, first fit.
class Space {
 public:
  explicit Space(size_t size) {
    free_[0] = size;
  }
  bool take(size_t bytes, size_t align, size_t* offset) {
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const size_t start = (it->first + align - 1) / align * align, end = it->first + it->second;
      if (start + bytes > end)
        continue;
      const size_t before = it->first;
      free_.erase(it);
      if (start > before)
        free_[before] = start - before;
      if (end > start + bytes)
        free_[start + bytes] = end - start - bytes;
      *offset = start;
      return true;
    }
    return false;
  }
  void give(size_t offset, size_t bytes) {
    auto next = free_.lower_bound(offset);
    if (next != free_.begin()) {
      auto before = std::prev(next);
      if (before->first + before->second == offset) {
        offset = before->first, bytes += before->second;
        free_.erase(before);
      }
    }
    if (next != free_.end() && offset + bytes == next->first) {
      bytes += next->second;
      free_.erase(next);
    }
    free_[offset] = bytes;
  }

 private:
  std::map<size_t, size_t> free_;  // offset -> bytes
};

struct Block {
  size_t bytes, taken;  // asked for; with its alignment and canary
};

struct Physical {
  int device;
  size_t offset, bytes;
};

struct Hbm {
  int file = -1;
  char* base = nullptr;
  size_t size = 0, used = 0, peak = 0, allocations = 0;
  Space space{0}, addresses{0};      // of the file; of the reserved range
  std::map<char*, Block> blocks;     // live memory, both kinds
  std::map<char*, size_t> reserved;  // by aclrtReserveMemAddress
};

struct All {
  std::mutex m;
  std::vector<std::unique_ptr<Hbm>> devices;
  std::map<void*, size_t> host;  // pinned
  std::set<Physical*> physical;
  char* base = nullptr;
  size_t each = 0;      // addresses of one device: its memory, and as many times as much to reserve
  ptrdiff_t shift = 0;  // from an address to where the emulation reads it
  uint64_t fail = 0;
};

constexpr size_t RESERVED = 64;  // times a device's memory; expandable segments reserve more than there is

void tell(int signal, siginfo_t* info, void*);
void map(const Hbm& hbm, ptrdiff_t shift, char* at, size_t bytes, size_t offset);

All& all() {
  static auto* held = [] {
    auto* a = new All;
    const size_t size = config().hbm / PAGE * PAGE;
    a->each = size * (1 + RESERVED);
    const size_t whole = a->each * config().devices * (config().check ? 2 : 1);
    void* range = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
      fprintf(stderr, "ascend-sim: no room for %zu bytes of addresses: give a smaller ASCEND_SIM_HBM\n", whole);
      exit(2);
    }
    a->base = static_cast<char*>(range);
    a->shift = config().check ? static_cast<ptrdiff_t>(a->each * config().devices) : 0;
    for (int i = 0; i < config().devices; ++i) {
      auto hbm = std::make_unique<Hbm>();
      hbm->file = memfd_create("ascend-sim", MFD_CLOEXEC);
      if (hbm->file < 0 || ftruncate(hbm->file, static_cast<off_t>(size)) != 0) {
        perror("ascend-sim: device memory");
        exit(2);
      }
      hbm->base = a->base + a->each * i;
      hbm->size = size;
      hbm->space = Space(size);
      hbm->addresses = Space(size * RESERVED);
      map(*hbm, a->shift, hbm->base, size, 0);  // the host gives a page when it is first written
      a->devices.push_back(std::move(hbm));
    }
    if (config().check) {
      struct sigaction action = {};
      action.sa_sigaction = tell;
      action.sa_flags = SA_SIGINFO | SA_RESETHAND;
      sigaction(SIGSEGV, &action, nullptr);
    }
    return a;
  }();
  return *held;
}

// Says what happened in words, and lets the fault happen again.
void tell(int, siginfo_t* info, void*) {
  const All& a = all();
  const auto* address = static_cast<const char*>(info->si_addr);
  char text[256];
  const char* what = a.base != nullptr && address >= a.base && address < a.base + a.each * a.devices.size()
                         ? "ascend-sim: host code touched device memory at %p: on a device this is a fault\n"
                         : "ascend-sim: segmentation fault at %p, which is not device memory\n";
  const int length = snprintf(text, sizeof text, what, info->si_addr);
  if (write(2, text, static_cast<size_t>(length)) < 0)
    _exit(139);
}

void map(const Hbm& hbm, ptrdiff_t shift, char* at, size_t bytes, size_t offset) {
  const auto where = static_cast<off_t>(offset);
  const int open = PROT_READ | PROT_WRITE;
  mmap(at, bytes, config().check ? PROT_NONE : open, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, hbm.file, where);
  if (shift != 0)
    mmap(at + shift, bytes, open, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, hbm.file, where);
}

void unmap(char* at, size_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  mmap(at, bytes, PROT_NONE, flags, -1, 0);
  if (config().check)
    mmap(at + all().shift, bytes, PROT_NONE, flags, -1, 0);
}

int device_at(const void* address) {
  const All& a = all();
  const auto* p = static_cast<const char*>(address);
  if (p < a.base || p >= a.base + a.each * a.devices.size())
    return -1;
  return static_cast<int>((p - a.base) / static_cast<ptrdiff_t>(a.each));
}

// The live block that holds an address.
std::map<char*, Block>::iterator block_at(Hbm& hbm, const void* address) {
  auto it = hbm.blocks.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  if (it == hbm.blocks.begin())
    return hbm.blocks.end();
  --it;
  return static_cast<const char*>(address) < it->first + it->second.bytes ? it : hbm.blocks.end();
}

void count(Hbm& hbm, size_t bytes) {
  hbm.used += bytes;
  hbm.peak = std::max(hbm.peak, hbm.used);
  ++hbm.allocations;
}

bool told_to_fail(All& a) {
  return a.fail != 0 && --a.fail == 0;
}

aclError out_of_memory(const Hbm& hbm, size_t bytes) {
  return fail(ACL_ERROR_RT_MEMORY_ALLOCATION,
              "EL0004: Failed to allocate memory: %zu bytes asked for, %zu of %zu are free on the device", bytes,
              hbm.size - hbm.used, hbm.size);
}

aclError allocate(void** address, size_t bytes) {
  const int device = current_device();
  if (device < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
  if (address == nullptr || bytes == 0) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "expected an address to fill and at least one byte, got %zu", bytes);
  }
  All& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  Hbm& hbm = *a.devices[device];
  const size_t taken = (bytes + 32 + (config().check ? RED : 0) + GRAIN - 1) / GRAIN * GRAIN;  // 32: the device's own
  size_t offset = 0;
  if (told_to_fail(a) || !hbm.space.take(taken, GRAIN, &offset))
    return out_of_memory(hbm, bytes);
  count(hbm, taken);
  char* p = hbm.base + offset;
  hbm.blocks[p] = {bytes, taken};
  if (config().check) {
    memset(p + a.shift, FRESH, bytes);
    memset(p + a.shift + bytes, CANARY, taken - bytes);
  }
  *address = p;
  return ACL_SUCCESS;
}

}  // namespace

void* host(const void* device) {
  auto* p = static_cast<char*>(const_cast<void*>(device));
  return device_at(p) < 0 ? p : p + all().shift;
}

int device_of(const void* address, size_t bytes) {
  const int device = device_at(address);
  if (device < 0)
    return -1;
  All& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  Hbm& hbm = *a.devices[device];
  const auto* end = static_cast<const char*>(address) + bytes;
  auto it = block_at(hbm, address);
  while (it != hbm.blocks.end()) {  // an expandable segment is many blocks side by side
    const char* until = it->first + it->second.bytes;
    if (end <= until)
      return device;
    auto next = std::next(it);
    it = next != hbm.blocks.end() && next->first == until ? next : hbm.blocks.end();
  }
  return -1;
}

bool is_device(const void* address) {
  return device_at(address) >= 0;
}

}  // namespace sim::memory

using namespace sim;
using memory::all;

EXPORT aclError aclrtMalloc(void** address, size_t bytes, aclrtMemMallocPolicy) {
  API(aclrtMalloc);
  return memory::allocate(address, bytes);
}

EXPORT aclError aclrtMallocAlign32(void** address, size_t bytes, aclrtMemMallocPolicy) {
  API(aclrtMallocAlign32);
  return memory::allocate(address, bytes);
}

EXPORT aclError aclrtFree(void* address) {
  API(aclrtFree);
  const int device = memory::device_at(address);
  if (device < 0)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree(%p): not device memory", address);
  auto& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  auto& hbm = *a.devices[device];
  auto it = hbm.blocks.find(static_cast<char*>(address));
  if (it == hbm.blocks.end()) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree(%p): not the start of live device memory", address);
  }
  const memory::Block block = it->second;
  if (config().check) {
    const auto* red = reinterpret_cast<unsigned char*>(it->first + a.shift + block.bytes);
    for (size_t i = 0; i < block.taken - block.bytes; ++i) {
      if (red[i] != memory::CANARY) {
        fprintf(stderr, "ascend-sim: a task wrote %zu bytes behind the end of a block of %zu bytes at %p\n", i + 1,
                block.bytes, address);
        abort();
      }
    }
  }
  const auto offset = static_cast<size_t>(it->first - hbm.base);
  const size_t page = 4096, low = (offset + page - 1) / page * page, high = (offset + block.taken) / page * page;
  if (high > low) {
    fallocate(hbm.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(low),
              static_cast<off_t>(high - low));
  }
  hbm.blocks.erase(it);
  hbm.space.give(offset, block.taken);
  hbm.used -= block.taken;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  API(aclrtGetMemInfo);
  const int device = current_device();
  if (device < 0)
    return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has no device: call aclrtSetDevice first");
  std::lock_guard<std::mutex> lock(all().m);
  const auto& hbm = *all().devices[device];
  if (free != nullptr)
    *free = hbm.size - hbm.used;
  if (total != nullptr)
    *total = hbm.size;
  return ACL_SUCCESS;
}

// --- addresses and physical memory apart: expandable segments

EXPORT aclError aclrtReserveMemAddress(void** address, size_t bytes, size_t, void*, uint64_t) {
  API(aclrtReserveMemAddress);
  const int device = std::max(current_device(), 0);  // torch_npu tries it before it sets a device
  std::lock_guard<std::mutex> lock(all().m);
  auto& hbm = *all().devices[device];
  const size_t taken = (bytes + memory::PAGE - 1) / memory::PAGE * memory::PAGE;
  size_t offset = 0;
  if (bytes == 0 || !hbm.addresses.take(taken, memory::PAGE, &offset)) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no room for %zu bytes of addresses on the device", bytes);
  }
  char* p = hbm.base + hbm.size + offset;
  hbm.reserved[p] = taken;
  *address = p;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtReleaseMemAddress(void* address) {
  API(aclrtReleaseMemAddress);
  const int device = memory::device_at(address);
  std::lock_guard<std::mutex> lock(all().m);
  if (device >= 0) {
    auto& hbm = *all().devices[device];
    auto it = hbm.reserved.find(static_cast<char*>(address));
    if (it != hbm.reserved.end()) {
      hbm.addresses.give(static_cast<size_t>(it->first - hbm.base) - hbm.size, it->second);
      hbm.reserved.erase(it);
      return ACL_SUCCESS;
    }
  }
  return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtReleaseMemAddress(%p): not a reserved address", address);
}

EXPORT aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes, const aclrtPhysicalMemProp* prop,
                                    uint64_t) {
  API(aclrtMallocPhysical);
  const int device = prop != nullptr ? static_cast<int>(prop->location.id) : current_device();
  if (device < 0 || device >= config().devices)
    return fail(ACL_ERROR_RT_INVALID_DEVICEID, "no device %d", device);
  auto& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  auto& hbm = *a.devices[device];
  const size_t taken = (bytes + memory::PAGE - 1) / memory::PAGE * memory::PAGE;
  size_t offset = 0;
  if (bytes == 0 || memory::told_to_fail(a) || !hbm.space.take(taken, memory::PAGE, &offset)) {
    return memory::out_of_memory(hbm, bytes);
  }
  memory::count(hbm, taken);
  auto* physical = new memory::Physical{device, offset, taken};
  a.physical.insert(physical);
  *handle = physical;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  API(aclrtFreePhysical);
  auto& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  auto* physical = static_cast<memory::Physical*>(handle);
  if (a.physical.erase(physical) == 0) {
    return fail(ACL_ERROR_RT_INVALID_HANDLE, "aclrtFreePhysical(%p): no such memory", handle);
  }
  auto& hbm = *a.devices[physical->device];
  fallocate(hbm.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(physical->offset),
            static_cast<off_t>(physical->bytes));
  hbm.space.give(physical->offset, physical->bytes);
  hbm.used -= physical->bytes;
  delete physical;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtMapMem(void* address, size_t bytes, size_t offset, aclrtDrvMemHandle handle, uint64_t) {
  API(aclrtMapMem);
  auto& a = all();
  std::lock_guard<std::mutex> lock(a.m);
  auto* physical = static_cast<memory::Physical*>(handle);
  if (a.physical.count(physical) == 0 || offset != 0 || bytes > physical->bytes) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMapMem: expected a handle of at least %zu bytes and offset 0", bytes);
  }
  auto* p = static_cast<char*>(address);
  auto& hbm = *a.devices[physical->device];
  auto it = hbm.reserved.upper_bound(p);
  if (it == hbm.reserved.begin() || p + bytes > std::prev(it)->first + std::prev(it)->second) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMapMem(%p): not in a range that was reserved", address);
  }
  memory::map(hbm, a.shift, p, physical->bytes, physical->offset);
  hbm.blocks[p] = {bytes, bytes};
  if (config().check)
    memset(p + a.shift, memory::FRESH, bytes);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtUnmapMem(void* address) {
  API(aclrtUnmapMem);
  const int device = memory::device_at(address);
  std::lock_guard<std::mutex> lock(all().m);
  if (device >= 0) {
    auto& hbm = *all().devices[device];
    auto it = hbm.blocks.find(static_cast<char*>(address));
    if (it != hbm.blocks.end() && it->first >= hbm.base + hbm.size) {
      memory::unmap(it->first, it->second.bytes);
      hbm.blocks.erase(it);
      return ACL_SUCCESS;
    }
  }
  return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtUnmapMem(%p): nothing is mapped there", address);
}

// --- pinned host memory

EXPORT aclError aclrtMallocHost(void** address, size_t bytes) {
  API(aclrtMallocHost);
  if (address == nullptr || bytes == 0)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMallocHost: no bytes");
  void* p = nullptr;
  if (posix_memalign(&p, 4096, bytes) != 0) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "EL0004: Failed to allocate memory: %zu bytes of the host", bytes);
  }
  std::lock_guard<std::mutex> lock(all().m);
  all().host[p] = bytes;
  *address = p;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtFreeHost(void* address) {
  API(aclrtFreeHost);
  std::lock_guard<std::mutex> lock(all().m);
  if (all().host.erase(address) == 0) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFreeHost(%p): not memory of aclrtMallocHost", address);
  }
  free(address);
  return ACL_SUCCESS;
}

EXPORT aclError aclrtHostRegister(void* address, uint64_t bytes, aclrtHostRegisterType, void** device) {
  API(aclrtHostRegister);
  if (address == nullptr || bytes == 0)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtHostRegister: no bytes");
  if (device != nullptr)
    *device = address;
  return ACL_SUCCESS;
}

EXPORT aclError aclrtHostUnregister(void*) {
  API(aclrtHostUnregister);
  return ACL_SUCCESS;
}

EXPORT void* ascsim_host(const void* device) {
  return memory::host(device);
}

EXPORT void ascsim_fail_allocation(uint64_t n) {
  std::lock_guard<std::mutex> lock(all().m);
  all().fail = n;
}

namespace sim::memory {
void usage(int device, ascsim_usage* out) {
  std::lock_guard<std::mutex> lock(all().m);
  const Hbm& hbm = *all().devices[device];
  out->bytes = hbm.used;
  out->peak = hbm.peak;
  out->allocations = hbm.allocations;
}
}  // namespace sim::memory
