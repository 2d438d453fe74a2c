"""Copies of a call's inputs at addresses of their own: for devices whose graphs read fixed ones, and for verification.

Aliasing, strides and gaps are kept: what is copied is the span of bytes that the inputs of one storage cover.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

_ALIGNED = 64  # bytes; any dtype's alignment is kept


@dataclass
class _Span:
    """Part of one storage, and where it is copied to."""

    start: int  # bytes, in the storage of the call it was made for
    end: int
    first: int  # where the tensor of the first position begins
    positions: list[int] = field(default_factory=list)
    memory: torch.Tensor | None = None  # uint8

    @property
    def before(self) -> int:
        """Bytes of the copy before the span, so that it is aligned as the original is."""
        return self.start % _ALIGNED

    def bytes_of(self, args: Sequence[Any]) -> torch.Tensor:
        """The span in the tensors that it was made for."""
        tensor = args[self.positions[0]]
        view = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return view.set_(tensor.untyped_storage(), self.start, (self.end - self.start,), (1,))

    def copy(self) -> torch.Tensor:
        """The span in the copy."""
        assert self.memory is not None
        return self.memory.narrow(0, self.before, self.end - self.start)


class Slots:
    """Stand-ins for some inputs of a call; the others stand for themselves."""

    def __init__(
        self, args: Sequence[Any], copied: Collection[int], *, filled: bool = True, whole: bool = False
    ) -> None:
        """Makes the copies.

        Args:
            args: a call's arguments; only tensors are ever copied.
            copied: positions to copy. Inputs that share memory with one of them are copied with it.
            filled: with the call's values; else with anything.
            whole: copies are of whole storages, for those who look beyond the inputs.
        """
        self.args = list(args)
        self._spans = [s for s in _spans(args, whole) if any(p in copied for p in s.positions)]
        self.homes = {  # addresses of those that stand for themselves, by position
            i: a.data_ptr() for i, a in enumerate(args) if isinstance(a, torch.Tensor) and not self._is_copied(i)
        }
        for span in self._spans:
            source = args[span.positions[0]]
            size = span.before + span.end - span.start
            span.memory = torch.empty(size, dtype=torch.uint8, device=source.device)
            for i in span.positions:
                tensor = args[i]
                offset = tensor.storage_offset() - (span.start - span.before) // tensor.element_size()
                view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                self.args[i] = view.set_(span.memory.untyped_storage(), offset, tensor.shape, tensor.stride())
            if filled:
                span.copy().copy_(span.bytes_of(args))

    def _is_copied(self, position: int) -> bool:
        return any(position in s.positions for s in self._spans)

    @property
    def spans(self) -> list[tuple[list[int], int, int, torch.Tensor]]:
        """Of each copy: the positions in it, where it begins from the first one's first element, its bytes, itself."""
        return [(s.positions, s.start - s.first, s.end - s.start, s.copy()) for s in self._spans]


def _spans(args: Sequence[Any], whole: bool) -> list[_Span]:
    spans: dict[int, _Span] = {}
    for i, a in enumerate(args):
        if isinstance(a, torch.Tensor):
            start = int(a.storage_offset())
            last = start + sum((int(n) - 1) * int(s) for n, s in zip(a.shape, a.stride(), strict=True))
            end = last + 1 if a.numel() else start
            begin = start * a.element_size()
            span = spans.setdefault(a.untyped_storage()._cdata, _Span(begin, begin, begin))
            span.start = min(span.start, begin)
            span.end = max(span.end, end * a.element_size())
            if whole:
                span.start, span.end = 0, a.untyped_storage().nbytes()
            span.positions.append(i)
    return list(spans.values())
