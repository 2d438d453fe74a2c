"""What a process's memory says: peak resident size, and which pages of a tensor a call wrote.

Linux only, from /proc and userfaultfd. Answers None where the kernel does not tell, never a guess.
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch

PAGE = os.sysconf("SC_PAGE_SIZE")
# From linux/userfaultfd.h and linux/fs.h.
USERFAULTFD_SYSCALL = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER, PAGEMAP_SCAN = 0xC018AA3F, 0xC020AA00, 0xC0606610
WP_FEATURES = (1 << 15) | (1 << 13) | 1
WRITTEN, WRITE_PROTECT = 2, 3


def status_mb(field: str) -> float:
    """A `VmRSS` or `VmHWM` line of /proc/self/status, in MB."""
    with open("/proc/self/status") as lines:
        line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Makes `VmHWM` start again from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def pages(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte of the first page and last byte + 1 of the last page that the tensor's storage touches."""
    storage = tensor.untyped_storage()
    start = storage.data_ptr() // PAGE * PAGE
    return start, -(-(storage.data_ptr() + storage.nbytes()) // PAGE) * PAGE


def bytes_written(tensors: Sequence[torch.Tensor], action: Callable[[], Any]) -> int | None:
    """Bytes of the pages of `tensors` that `action` writes to, counted by the kernel in whole pages.

    Pages are write-protected asynchronously (userfaultfd, Linux >= 6.7), so that writing equal values back is
    seen too. None where the system lacks or refuses that.
    """
    ranges = sorted({pages(tensor) for tensor in tensors})
    fd = ctypes.CDLL(None).syscall(USERFAULTFD_SYSCALL.get(os.uname().machine, -1), os.O_CLOEXEC | 1)
    if fd < 0:
        return None
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("3Q", 0xAA, WP_FEATURES, 0)))
        for start, end in ranges:
            fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("4Q", start, end - start, 2, 0)))
            written_pages(pagemap, start, end, WRITE_PROTECT)
        action()
        written = set().union(*(written_pages(pagemap, start, end, 0) for start, end in ranges))
    except OSError:
        return None
    finally:
        os.close(pagemap)
        os.close(fd)
    return len(written) * PAGE


def written_pages(pagemap: int, start: int, end: int, flags: int) -> set[int]:
    """Addresses of the written pages in a range, which flags=WRITE_PROTECT also protects again."""
    room = (end - start) // PAGE
    regions = (ctypes.c_uint64 * (3 * room))()
    fields = [96, flags, start, end, 0, ctypes.addressof(regions), room, 0, 0, WRITTEN, 0, WRITTEN]
    found = fcntl.ioctl(pagemap, PAGEMAP_SCAN, bytearray(struct.pack("12Q", *fields)))
    return {page for i in range(found) for page in range(regions[3 * i], regions[3 * i + 1], PAGE)}
