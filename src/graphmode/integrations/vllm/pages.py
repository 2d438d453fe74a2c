"""Huge pages for the processes that vLLM starts: a decode step reads every weight once, and address translation shows.

Where Linux gives huge pages on request only (`transparent_hugepage` is `madvise`, the default of most distributions),
nobody requests them: a step of SmolLM2-135M takes 9 to 12 % longer than with them (`docs/design/vllm-step.md`).
Weights and cache gain by them. What comes after these, bit by bit, would wait for whole pages to be cleared: for 6 ms
each where a host gives its guest memory as it is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

from graphmode.integrations.vllm.plugin import log

_STARTER = "GRAPHMODE_VLLM_HUGE_PAGES"  # set where the variables are ours: the process that set them, too late for it
VARIABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # oneDNN's packed weights
    "THP_MEM_ALLOC_ENABLE": "1",  # torch's tensors, and so the key-value cache
    _STARTER: "0",
}
_PR_SET_THP_DISABLE = 41


def request() -> None:
    """Sets the variables, which are read when a process starts: for those started from now on. The user's own stay."""
    if not any(name in os.environ for name in VARIABLES):
        os.environ.update(VARIABLES, **{_STARTER: str(os.getpid())})
    elif _STARTER not in os.environ:
        for name in VARIABLES.keys() - {_STARTER}:
            os.environ.setdefault(name, VARIABLES[name])


def enough() -> None:
    """This process keeps its huge pages and gets no more, where it was started with our variables."""
    _allow(False)


@contextlib.contextmanager
def again() -> Iterator[None]:
    """Huge pages for what the block allocates."""
    _allow(True)
    try:
        yield
    finally:
        _allow(False)


def _allow(allowed: bool) -> None:
    if sys.platform != "linux" or os.environ.get(_STARTER, str(os.getpid())) == str(os.getpid()):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0) != 0:
        log.debug("huge pages: prctl failed: %s", os.strerror(ctypes.get_errno()))
