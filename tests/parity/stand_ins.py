"""Products that are not graphmode: honest ones and some that cheat, to show what the sweep sees and what not.

Owns nothing that a test of graphmode uses, but the eager backend, which finds what eager cannot repeat.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .product import Backend, Graphs
from .samples import Case
from .session import Driver, Session


@dataclass
class Reason:
    reason: str
    op: str = "op"
    count: int = 1


@dataclass
class Count:
    replays: int = 0
    fallbacks: list[Reason] = field(default_factory=list)


Wrap = Callable[[Callable[..., Any], Count], Callable[..., Any]]


def backend_of(wrap: Wrap) -> Backend:
    """A backend that runs the graph as `wrap` changes it; `wrap` may raise the counters it is given."""
    count = Count()

    def compile_graph(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return wrap(module.forward, count)

    def reset() -> None:
        count.replays = 0
        count.fallbacks.clear()

    return Backend(compile_graph, lambda: count, reset, nullcontext)


def eager_again() -> Backend:
    """Runs eager at each call and says that it replayed: fails where eager does not equal itself."""

    def wrap(forward: Callable[..., Any], count: Count) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> Any:
            count.replays += 1
            return forward(*inputs)

        return run

    return backend_of(wrap)


class Recorder(TorchDispatchMode):
    """An honest raw graph in Python: runs each op again, and copies the result to where it was at capture."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise HostRead("a value was read on the host")
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            for held, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if not isinstance(held, Tensor) or held is new:
                    continue
                if held.shape != new.shape:
                    raise HostRead("a shape changed")
                if held.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    held.copy_(new)


class HostRead(Exception):
    pass


class DoesNothing(Recorder):
    """Captures, and leaves the outputs as they are at replay."""

    def replay(self) -> None:
        return


class RepeatsItself(Recorder):
    """Writes at each replay what the first replay gave."""

    _first: list[tuple[Tensor, Tensor]] | None = None

    def replay(self) -> None:
        if self._first is None:
            super().replay()
            outs = [t for _, _, _, out in self._calls for t in tree_leaves(out) if isinstance(t, Tensor)]
            self._first = [(t, t.clone()) for t in outs]
        for held, old in self._first:
            held.copy_(old)


class Forgets(Recorder):
    """Lets values be read on the host while it captures, so that they become constants."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def graphs_of(make: Callable[[], Recorder]) -> Graphs:
    return Graphs(make, HostRead)


def detached(result: Any) -> Any:
    """The same values in memory of their own."""
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, result)


class Crashes:
    """Kills its process on `add` and never ends on `sub`: what the pool has to survive."""

    name = "crashes"
    grad_mode = False

    def __init__(self, inner: Driver) -> None:
        self._inner = inner

    def start(self, case: Case) -> Session:
        if case.op == "add":
            os.kill(os.getpid(), signal.SIGSEGV)
        while case.op == "sub":
            pass
        return self._inner.start(case)
