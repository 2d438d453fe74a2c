"""`acl.rt`: memory. As in CANN's binding, addresses are plain numbers and nothing raises: an error code comes back."""

from __future__ import annotations

import ctypes

from ascend_sim import runtime

_size, _address = ctypes.c_size_t, ctypes.c_void_p


def malloc(size: int, policy: int = 0) -> tuple[int, int]:
    """Device memory: its address (0 where there is none left) and the error code."""
    found = _address()
    code = runtime.load().aclrtMalloc(ctypes.byref(found), _size(size), policy)
    return found.value or 0, int(code)


def free(address: int) -> int:
    """Gives `malloc`'s memory back."""
    return int(runtime.load().aclrtFree(_address(address)))


def memcpy(dst: int, dest_max: int, src: int, count: int, kind: int) -> int:
    """Copies at once; kind 0: host to host, 1: host to device, 2: device to host, 3: device to device."""
    return int(runtime.load().aclrtMemcpy(_address(dst), _size(dest_max), _address(src), _size(count), kind))
