"""Which sizes are worth a capture: those that come again, and that served once they had a graph.

Owns counts per signature. Knows nothing of graphs; the region calls it under its lock. Keys are hashes of signatures: a
signature has a part for each weight, and a size that is taken for another one only waits longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import torch

_REMEMBERED = 4096  # signatures; older ones start again
_PAYS = 16  # replays after which a capture was worth its time
_DEARER = 4  # times as many live calls before the next capture, for each one that did not pay
_AT_MOST = 4**6
_FORMS = 8  # sizes over the cap that are remembered

Form = tuple[tuple[int, ...], ...]


class Admission:
    """Counts the live calls of each signature, and how well its graphs served.

    A size whose graph is dropped before it paid is captured again only after four times as many live calls, then
    sixteen times, and so on. Without that, more sizes than `max_graphs` would capture and drop for ever.
    """

    def __init__(self, capture_after: int, back_off: bool = True) -> None:
        self._after = capture_after
        self._back_off = back_off
        self._seen: OrderedDict[int, int] = OrderedDict()
        self._in_vain: OrderedDict[int, int] = OrderedDict()
        self._too_large: list[Form] = []

    def wants(self, key: int) -> bool:
        """Counts one call for which there is no graph; whether it is to be captured."""
        count = self._seen.pop(key, 0) + 1
        _remember(self._seen, key, count)
        vain = self._in_vain.get(key, 0)
        return count > (min(max(self._after, 1) * _DEARER**vain, _AT_MOST) if vain else self._after)

    def puts_off(self, key: int) -> bool:
        """Whether it waits longer than a new size does, for its last graph did not pay."""
        return key in self._in_vain

    def captured(self, key: int) -> None:
        """A graph serves it from now on."""
        self._seen.pop(key, None)

    def dropped(self, key: int, replays: int) -> None:
        """Its graph made room for another one."""
        vain = self._in_vain.pop(key, 0)
        if replays < _PAYS and self._back_off:
            _remember(self._in_vain, key, vain + 1)

    def stale(self, key: int) -> None:
        """Its graph reads memory that has moved: the next call is captured."""
        self._in_vain.pop(key, None)
        _remember(self._seen, key, max(self._after, self._seen.pop(key, 0)))

    def over_cap(self, args: Sequence[Any], given: Collection[int]) -> None:
        """A graph for these arguments needs more bytes than it may have."""
        form = _form(args, given)
        self._too_large = [form, *(f for f in self._too_large if not _covers(f, form))][:_FORMS]

    def too_large(self, args: Sequence[Any], given: Collection[int]) -> bool:
        """Whether a size was over the cap that these arguments reach in every dimension."""
        return bool(self._too_large) and any(_covers(_form(args, given), f) for f in self._too_large)

    def clear(self) -> None:
        """Forgets everything."""
        self._seen.clear()
        self._in_vain.clear()
        self._too_large.clear()


def _remember(table: OrderedDict[int, int], key: int, count: int) -> None:
    table[key] = count
    while len(table) > _REMEMBERED:
        table.popitem(last=False)


def _form(args: Sequence[Any], given: Collection[int]) -> Form:
    sizes = (tuple(a.shape) if isinstance(a, torch.Tensor) else (a,) if type(a) is int else () for a in args)
    return tuple(() if i in given else size for i, size in enumerate(sizes))


def _covers(large: Form, small: Form) -> bool:
    return len(large) == len(small) and all(
        len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True)) for a, b in zip(large, small, strict=True)
    )
