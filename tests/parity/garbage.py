"""Makes memory that nobody wrote hold something else each time, so that reading it shows.

Owns the poison of raw outputs and of the C allocator; it knows nothing of cases.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

_M_PERTURB = -6
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)


@contextmanager
def allocator_fills_with(byte: int) -> Iterator[None]:
    """Until the end, what the C allocator hands out or takes back is filled with `byte` (glibc only)."""
    if _mallopt is None:
        yield
        return
    _mallopt(_M_PERTURB, byte)
    try:
        yield
    finally:
        _mallopt(_M_PERTURB, 0)


def fill_with_garbage(tensors: Iterable[Tensor], keep: Iterable[Tensor]) -> None:
    """Overwrite the bytes behind `tensors`, but none that `keep` lives in: a replay must write them anew."""
    kept = {t.untyped_storage().data_ptr() for t in keep}
    for t in tensors:
        storage = t.untyped_storage()
        if storage.data_ptr() not in kept:
            storage.fill_(0xA7)
