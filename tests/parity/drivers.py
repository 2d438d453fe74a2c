"""The three paths that a case can take: the backend's entry, torch.compile as users call it, a raw graph.

Owns how a program gets into the product and its counters come out; it judges nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters as dynamo_counters
from torch._guards import TracingContext, tracing
from torch.utils._pytree import tree_leaves

from .fx_program import fake_inputs, graph_of, leaves_of_fake_run
from .garbage import fill_with_garbage
from .product import Backend, Graphs, RawGraph, graphmode_backend, graphmode_graphs
from .samples import Case
from .session import Driver, Refused, Session, Tally
from .storage import clone_group, overwrite, parts


class BackendDriver:
    """Hands the backend a graph of one node, as Dynamo would, without the second that Dynamo takes.

    A program that no such graph can express (its result is a number, or its shape depends on data) goes by
    torch.compile.
    """

    name = "backend"
    grad_mode = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def start(self, case: Case) -> Session:
        fakes, mode = fake_inputs(case)
        outputs = leaves_of_fake_run(case, fakes, mode)
        if outputs is None:
            return CompileDriver(self._backend).start(case)
        return _BackendSession(self._backend, case, outputs, mode)


class _BackendSession:
    flat_outputs = True
    keeps_outputs = True

    def __init__(self, backend: Backend, case: Case, outputs: list[Tensor], mode: Any) -> None:
        self._backend = backend
        self._stack = ExitStack()
        backend.reset()
        self._stack.enter_context(backend.poison())
        try:
            module = graph_of(case, outputs, mode)
            with tracing(TracingContext(mode)):
                self._run: Callable[..., Any] = backend.compile(module, clone_group(case.values[0]))
        except BaseException:
            self._stack.close()
            raise

    def call(self, tensors: list[Tensor]) -> tuple[object, list[Tensor]]:
        return list(self._run(*tensors)), tensors

    def tally(self) -> Tally:
        return _read(self._backend, Tally(graphs=1))

    def close(self) -> None:
        self._stack.close()


class CompileDriver:
    """torch.compile(program, backend=...), with nothing taken out."""

    name = "compile"
    grad_mode = True

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def start(self, case: Case) -> Session:
        return _CompileSession(self._backend, case)


class _CompileSession:
    flat_outputs = False
    keeps_outputs = True

    def __init__(self, backend: Backend, case: Case) -> None:
        torch._dynamo.reset()
        dynamo_counters.clear()
        backend.reset()
        self._backend, self._case, self._graphs = backend, case, 0
        self._stack = ExitStack()
        self._stack.enter_context(backend.poison())
        fn = case.fn

        def program(first: Any, *args: Any, **kwargs: Any) -> Any:
            return fn(first, *args, **kwargs)

        self._run = torch.compile(program, backend=self._count)

    def _count(self, module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self._graphs += 1
        return self._backend.compile(module, example_inputs)

    def call(self, tensors: list[Tensor]) -> tuple[object, list[Tensor]]:
        first, args, kwargs = self._case.arguments(tensors)
        return self._run(first, *args, **kwargs), tensors

    def tally(self) -> Tally:
        broken = Counter({str(k).partition("\n")[0]: n for k, n in dynamo_counters["graph_break"].items()})
        return _read(self._backend, Tally(graphs=self._graphs, dynamo_reasons=broken))

    def close(self) -> None:
        self._stack.close()
        torch._dynamo.reset()


def _read(backend: Backend, tally: Tally) -> Tally:
    report = backend.report()
    tally.replays = report.replays
    for fallback in report.fallbacks:
        where = f" ({fallback.op})" if fallback.op else ""
        tally.reasons[fallback.reason + where] += fallback.count
    return tally


class RawDriver:
    """A raw graph: inputs and outputs stay where they are; outputs are garbage before each replay."""

    name = "raw"
    grad_mode = False

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def start(self, case: Case) -> Session:
        return _RawSession(self._graphs, case)


class _RawSession:
    flat_outputs = False
    keeps_outputs = False

    def __init__(self, graphs: Graphs, case: Case) -> None:
        self._graphs, self._case = graphs, case
        self._static: list[Tensor] = []
        self._graph: RawGraph | None = None
        self._result: object = None
        self._calls = self._replays = 0

    def call(self, tensors: list[Tensor]) -> tuple[object, list[Tensor]]:
        self._calls += 1
        if self._calls == 1:
            return self._case.call(tensors), tensors
        if self._graph is None:
            self._capture(tensors)
        else:
            self._replay(tensors)
        return self._result, self._static

    def _capture(self, tensors: list[Tensor]) -> None:
        self._static = tensors
        graph = self._graphs.make()
        try:
            with graph:
                self._result = self._case.call(self._static)
        except self._graphs.refusal as refusal:
            raise Refused(f"{type(refusal).__name__}: {refusal}") from refusal
        self._graph = graph

    def _replay(self, tensors: list[Tensor]) -> None:
        assert self._graph is not None
        leaves = [leaf for leaf in tree_leaves(self._result) if isinstance(leaf, Tensor)]
        fill_with_garbage([parts(leaf)[-1] for leaf in leaves], keep=[p for t in self._static for p in parts(t)])
        overwrite(self._static, tensors)
        self._graph.replay()
        self._replays += 1

    def tally(self) -> Tally:
        return Tally(graphs=1, replays=self._replays)

    def close(self) -> None:
        self._graph = None


def driver(name: str) -> Driver:
    """The driver of this name over graphmode; "eager" and "crashes" are stand-ins that need no graphmode."""
    from .stand_ins import Crashes, eager_again

    makers: dict[str, Callable[[], Driver]] = {
        "backend": lambda: BackendDriver(graphmode_backend()),
        "raw": lambda: RawDriver(graphmode_graphs()),
        "compile": lambda: CompileDriver(graphmode_backend()),
        "eager": lambda: BackendDriver(eager_again()),
        "crashes": lambda: Crashes(BackendDriver(eager_again())),
    }
    assert set(makers) == set(DRIVERS)
    return makers[name]()


DRIVERS = ("backend", "raw", "compile", "eager", "crashes")
