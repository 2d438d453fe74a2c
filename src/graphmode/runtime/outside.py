"""Programs whose ops read what they work on from outside at each call: resolved once a call, then replayed.

Owns the choice between the program as it is and the one with direct calls. What is outside, an integration knows.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch.fx as fx
from torch._dynamo.aot_compile_types import SerializableCallable

from graphmode import _C
from graphmode.runtime.region import Region

_RARE = 16  # calls of a size that need not come again, before its capture: about as many replays pay for one


class How(Enum):
    """How a call runs for which nothing was resolved."""

    AS_IT_IS = auto()  # the program with its own ops, in graphs like any other
    LIVE = auto()  # a rehearsal, of a size that need not come again: it is not worth a graph


@dataclass
class Operands:
    """What a direct program takes besides its arguments."""

    values: list[Any]
    comes_again: bool = True  # whether a call of this size is likely to


class Resolver(abc.ABC):
    """Knows what the ops of one program would read at a call."""

    @property
    @abc.abstractmethod
    def direct(self) -> fx.GraphModule:
        """The program with direct calls in their place. What they read are further placeholders, at the end."""

    @abc.abstractmethod
    def operands(self, args: Sequence[Any]) -> Operands | How:
        """What the direct program takes after `args` at this call, or why it can't serve it. May renew `direct`."""


class Step(SerializableCallable):
    """One of Dynamo's graphs: resolved, and run by the region of the direct program, or as it is."""

    def __init__(self, region: Region, resolver: Resolver, make_region: Callable[..., Region]) -> None:
        """`make_region` takes a program, and options that differ from the region's own."""
        self._region = region
        self._resolver = resolver
        self._make_region = make_region
        self._program: fx.GraphModule | None = None
        self._direct: dict[bool, Region] = {}  # for calls whose size comes again, and for the others
        self._lock = threading.Lock()

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        return _C.Runner.serialize_compile_artifacts(fn)

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        return _C.Runner.deserialize_compile_artifacts(data)

    def __call__(self, *args: Any) -> Any:
        with self._lock:  # the operands are those of the program that is direct now
            operands = self._resolver.operands(args)
            if isinstance(operands, Operands):
                direct = self._region_for(operands.comes_again)
        if isinstance(operands, Operands):
            return direct.run(*args, *operands.values)
        return self._region.rehearse(args) if operands is How.LIVE else self._region.run(*args)

    def _region_for(self, comes_again: bool) -> Region:
        """Sizes that need not come again have a region of their own, so that their graphs take no other's place."""
        if self._resolver.direct is not self._program:
            self._program = self._resolver.direct
            self._direct = {}
        if comes_again not in self._direct:
            after = self._region.options.capture_after
            patience = {} if comes_again else {"capture_after": max(after, _RARE)}
            self._direct[comes_again] = self._make_region(self._program, **patience)
        return self._direct[comes_again]
