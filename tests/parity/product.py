"""The two doors of graphmode that the sweep goes through, as values that a test can replace by stand-ins.

Owns the only imports of graphmode in this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch


class Fallback(Protocol):
    @property
    def reason(self) -> str: ...

    @property
    def op(self) -> str | None: ...

    @property
    def count(self) -> int: ...


class Report(Protocol):
    @property
    def replays(self) -> int: ...

    @property
    def fallbacks(self) -> Iterable[Fallback]: ...


class RawGraph(Protocol):
    """The surface of `torch.accelerator.Graph` that a raw capture needs."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...

    def replay(self) -> None: ...


@dataclass(frozen=True)
class Backend:
    """A Dynamo backend, and what it counts. `poison` is entered around each case."""

    compile: Callable[[torch.fx.GraphModule, list[Any]], Callable[..., Any]]
    report: Callable[[], Report]
    reset: Callable[[], None]
    poison: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Graphs:
    """A maker of raw graphs, and the error class by which one refuses a program."""

    make: Callable[[], RawGraph]
    refusal: type[Exception]


def graphmode_backend() -> Backend:
    import graphmode
    from graphmode.backend import graphmode_backend as compile_graph

    return Backend(compile_graph, graphmode.report, graphmode.reset, lambda: graphmode.options(poison=True))


def graphmode_graphs() -> Graphs:
    import graphmode

    return Graphs(graphmode.Graph, graphmode.GraphModeError)
