"""The emulated runtime, seen from Python: what it was called for, what it holds, and its virtual time."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "lib"
HOME = Path(__file__).parent / "home"
# torch_npu asks for them by these names: a library that is loaded already is taken, wherever it lies.
NAMES = ("ascendcl", "opapi", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "hccl", "runtime", "atb")


@dataclass(frozen=True)
class Usage:
    """What one device holds now, and what happened on it since the start."""

    bytes: int  # of device memory
    peak: int  # bytes
    allocations: int
    streams: int
    graphs: int
    graph_slots: int  # of the budget that streams and graphs share
    graph_tasks: int  # of all graphs
    captures: int
    executions: int


class _Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Usage.__dataclass_fields__]


@cache
def load() -> ctypes.CDLL:
    """The runtime's library, with all others loaded beside it.

    Raises:
        RuntimeError: torch_npu is imported already, over something else.
    """
    if "torch_npu" in sys.modules and not _loaded():
        raise RuntimeError("torch_npu is imported already: activate ascend-sim before it, or use `ascend-sim run`")
    os.environ["ASCEND_HOME_PATH"] = str(HOME)  # torch_npu looks whether these folders are there
    os.environ["ASCEND_OPP_PATH"] = str(HOME / "opp")
    libraries = [ctypes.CDLL(str(FOLDER / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL) for name in NAMES]
    library = libraries[0]
    library.ascsim_host_time.restype = ctypes.c_double
    library.ascsim_device_time.restype = ctypes.c_double
    library.ascsim_timeline_json.restype = ctypes.c_void_p
    library.ascsim_counters.restype = ctypes.c_size_t
    library.ascsim_free.argtypes = [ctypes.c_void_p]
    library.ascsim_fail_allocation.argtypes = [ctypes.c_uint64]
    library.ascsim_fail_task.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    return library


def _loaded() -> bool:
    return any(str(FOLDER) in line for line in Path("/proc/self/maps").read_text().splitlines())


def calls() -> dict[str, int]:
    """How often each function of the runtime was called, by its name; `aclrtLaunchKernel` stands for every kernel."""
    room = 512
    names, counts = (ctypes.c_char_p * room)(), (ctypes.c_uint64 * room)()
    found = load().ascsim_counters(names, counts, room)
    return {names[i].decode(): counts[i] for i in range(min(found, room))}


def usage(device: int = 0) -> Usage:
    """What a device holds.

    Raises:
        ValueError: there is no such device.
    """
    found = _Usage()
    if load().ascsim_usage_of(device, ctypes.byref(found)) != 0:
        raise ValueError(f"no device {device}: ASCEND_SIM_DEVICES says how many there are")
    return Usage(**{name: getattr(found, name) for name in Usage.__dataclass_fields__})


def host_time() -> float:
    """Virtual microseconds that the host has spent in calls of the runtime and in waiting for devices."""
    return float(load().ascsim_host_time())


def device_time(device: int = 0) -> float:
    """Virtual microseconds at which the last task of a device ended."""
    return float(load().ascsim_device_time(device))


def fail_allocation(n: int) -> None:
    """Has the n-th next allocation of device memory fail with 207001; 0: none."""
    load().ascsim_fail_allocation(n)


def fail_task(name: str, n: int = 1) -> None:
    """Has the n-th next task whose name holds `name` fail with 507015; n 0: none."""
    load().ascsim_fail_task(name.encode(), n)


class timeline:
    """Records tasks in virtual time: `with timeline() as line: ...; line.events()`, or `line.save(path)` for a viewer
    of trace events (Perfetto, chrome://tracing)."""

    def __enter__(self) -> timeline:
        load().ascsim_timeline(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._text = self._now()
        load().ascsim_timeline(0)

    def _now(self) -> str:
        raw = load().ascsim_timeline_json()
        try:
            return ctypes.string_at(raw).decode()
        finally:
            load().ascsim_free(raw)

    def events(self) -> list[dict[str, Any]]:
        """Tasks as trace events: `name`, `ts` and `dur` in virtual microseconds, `pid` the device, `tid` the stream."""
        return list(json.loads(getattr(self, "_text", None) or self._now())["traceEvents"])

    def save(self, path: str | Path) -> None:
        """Writes the events to a file."""
        Path(path).write_text(getattr(self, "_text", None) or self._now())
