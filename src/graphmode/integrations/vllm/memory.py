"""What graphs may hold beside vLLM's key-value cache. Decided before anything is compiled, and taken from the cache.

Owns the share; that graphs stay under it is the region's work (`max_bytes`), which knows their bytes before they exist.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import psutil
from vllm.v1.worker.cpu_worker import CPUWorker

from graphmode import _C
from graphmode.devices.adapter import device_named
from graphmode.errors import OptionError
from graphmode.inspect.counters import ledger
from graphmode.integrations.vllm import pages
from graphmode.integrations.vllm.plugin import log
from graphmode.options import resolve, variable

SHARE = 200  # graphs get this part of the cache's memory: with what tracing takes, 98 % of eager's are left to it
ON_TOP = 64 * 2**20  # at least so many bytes where the cache's size is given: they are not taken from it
_VARIABLE = variable("max_bytes")
_DERIVED = "GRAPHMODE_VLLM_MAX_BYTES"  # equal to it where it was derived, here or in the process that started this one


class GraphsBesideCache(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, whose key-value cache leaves room for graphs. Weights and cache lie on huge pages."""

    def determine_available_memory(self) -> int:
        """Bytes for the key-value cache.

        Raises:
            OptionError: `max_bytes`, as given, leaves nothing for the cache.
        """
        fixed: int | None = self.cache_config.kv_cache_memory_bytes
        if fixed is None:
            cap, derived = reserve((int(self.requested_cpu_memory) - _resident()) // SHARE)
        else:
            cap, derived = reserve(max(fixed // SHARE, ON_TOP))
        available = int(super().determine_available_memory())
        if fixed is not None:  # the user's number is the cache's alone: graphs come on top, as all else does
            _tell(cap, available)
            return available
        available += _give_back()
        if derived:
            cap = min(cap, available // SHARE)  # the measuring run may have taken most of the room
        elif cap >= available:
            raise OptionError(
                f"max_bytes is {cap:,} and {available:,} bytes are left for graphs and the key-value cache together: "
                "give a smaller max_bytes, or a larger --gpu-memory-utilization"
            )
        _tell(cap, available - cap)
        return available - cap

    def compile_or_warm_up_model(self) -> Any:
        """The last step of a start."""
        done = super().compile_or_warm_up_model()
        pages.enough()
        return done

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """New weights, which lie as the first ones did."""
        with pages.again():
            super().reload_weights(*args, **kwargs)


def reserve(share: int) -> tuple[int, bool]:
    """Sets `max_bytes` for all that is compiled from now on, unless the user set it.

    Args:
        share: bytes for graphs. Less than one is one: 0 would be no bound.

    Returns:
        Bytes that graphs may take beside what they hold already, and whether they were derived here.
    """
    if os.environ.get(_VARIABLE) not in (None, os.environ.get(_DERIVED)):
        return resolve().max_bytes, False
    share = max(share, 1)
    held = device_named("cpu").pool_bytes() + ledger.fixed_bytes()  # by another engine of this process
    os.environ[_VARIABLE] = os.environ[_DERIVED] = str(held + share)
    return share, True


def _tell(cap: int, cache: int) -> None:
    most = f"{cap:,}" if cap else "any number of"  # 0 is the user's word for no cap
    log.info("graphs may take %s bytes beside a key-value cache of %s", most, f"{cache:,}")


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _give_back() -> int:
    """Gives the kernel what tracing left behind: bytes that vLLM took for used when it measured."""
    before = _resident()
    gc.collect()
    _C.give_back_free_memory()
    return max(before - _resident(), 0)
