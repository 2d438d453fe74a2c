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
        """The span in a later call's tensors, which may lie elsewhere in their storage."""
        tensor = args[self.positions[0]]
        moved = tensor.storage_offset() * tensor.element_size() - self.first
        view = torch.empty(0, dtype=torch.uint8, device=tensor.device)
        return view.set_(tensor.untyped_storage(), self.start + moved, (self.end - self.start,), (1,))

    def copy(self) -> torch.Tensor:
        """The span in the copy."""
        assert self.memory is not None
        return self.memory.narrow(0, self.before, self.end - self.start)


class Slots:
    """Stand-ins for some inputs of a call; the others stand for themselves."""

    def __init__(self, args: Sequence[Any], copied: Collection[int]) -> None:
        """Makes the copies.

        Args:
            args: a call's arguments; only tensors are ever copied.
            copied: positions to copy. Inputs that share memory with one of them are copied with it.
        """
        self.args = list(args)
        self._spans = [s for s in _spans(args) if any(p in copied for p in s.positions)]
        self._homes = {
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
        self._owners = {
            a.untyped_storage()._cdata: (i, a.storage_offset(), id(a))
            for i, a in enumerate(self.args)
            if isinstance(a, torch.Tensor)
        }
        self.fill(args)

    def let_go(self) -> None:
        """Holds the copies alone: an input that stands for itself may end, and then no later call has its address."""
        self.args = [a if i not in self._homes else None for i, a in enumerate(self.args)]

    def _is_copied(self, position: int) -> bool:
        return any(position in s.positions for s in self._spans)

    def moved(self, args: Sequence[Any]) -> list[int]:
        """Positions of inputs that stand for themselves and lie elsewhere now."""
        return [i for i, home in self._homes.items() if args[i].data_ptr() != home]

    def fill(self, args: Sequence[Any]) -> None:
        """Copies a call's values in."""
        for span in self._spans:
            span.copy().copy_(span.bytes_of(args))

    def give_back(self, args: Sequence[Any], written: Collection[int]) -> None:
        """Copies what a call wrote back to the caller's tensors."""
        for span in self._spans:
            if any(p in written for p in span.positions):
                span.bytes_of(args).copy_(span.copy())

    def hand_out(self, results: Sequence[Any], args: Sequence[Any], *, fresh: bool) -> tuple[Any, ...]:
        """Results the caller may keep: views of inputs become views of the caller's, and memory of the graph a copy."""
        copies: dict[int, torch.Tensor] = {}
        return tuple(self._one(r, args, copies, fresh) for r in results)

    def _one(self, result: Any, args: Sequence[Any], copies: dict[int, torch.Tensor], fresh: bool) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        storage = result.untyped_storage()
        owner = self._owners.get(storage._cdata)
        if owner is not None:
            position, offset, same = owner
            given = args[position]
            if id(result) == same:
                return given
            moved = (given.storage_offset() - offset) * given.element_size()
            if result.dtype == given.dtype and not (result.is_conj() or result.is_neg()):
                return given.as_strided(
                    result.shape, result.stride(), result.storage_offset() + moved // given.element_size()
                )
            return _like(result, given.untyped_storage(), moved)
        if fresh:
            return result
        if storage._cdata not in copies:  # results that are views of one another stay so
            whole = torch.empty(0, dtype=torch.uint8, device=result.device).set_(storage)
            copies[storage._cdata] = whole.clone()
        return _like(result, copies[storage._cdata].untyped_storage(), 0)


def _like(tensor: torch.Tensor, storage: torch.UntypedStorage, moved: int) -> torch.Tensor:
    """The tensor as it is, over another storage, so many bytes further on."""
    offset = tensor.storage_offset() + moved // tensor.element_size()
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    view = view.set_(storage, offset, tensor.shape, tensor.stride())
    view = view.conj() if tensor.is_conj() else view
    return torch._neg_view(view) if tensor.is_neg() else view


def _spans(args: Sequence[Any]) -> list[_Span]:
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
            span.positions.append(i)
    return list(spans.values())
