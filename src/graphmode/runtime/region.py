"""Policy of one compiled region: which call warms, captures, replays or runs live, and what is kept.

The hot path is native (`_C.Runner`); this is where it lands when no graph fits.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.fx as fx

from graphmode import _C
from graphmode.devices.adapter import DeviceGraph, device_named
from graphmode.errors import CaptureError, FallbackError
from graphmode.inspect.counters import Counters, ledger
from graphmode.options import Options
from graphmode.program.lines import line_of
from graphmode.runtime.signature import not_capturable, signature_of

_numbers = itertools.count()
_SIGNATURES_REMEMBERED = 4096  # counts of shapes seen but not captured; older ones start again


class _Located(fx.Interpreter):
    """Runs the program node by node, so that a captured call knows the user's line."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def line(self) -> str:
        return line_of(self.node) if self.node is not None else ""


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    # A weight that autocast converted earlier and cached would be a constant to the graph: stale after an update.
    torch.clear_autocast_cache()
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


class Owner(Protocol):
    """What a region belongs to."""

    def with_gradients(self, args: Sequence[Any]) -> Any:
        """Runs the whole call under autograd."""


class Region:
    """Runs one straight-line program: live, captured or replayed."""

    def __init__(self, gm: fx.GraphModule, options: Options, owner: Owner) -> None:
        self.number = next(_numbers)
        self.gm = gm
        self.owner = owner
        (output,) = gm.graph.find_nodes(op="output")
        self.single_result = not isinstance(output.args[0], (tuple, list))
        self.options = options
        self.counters = Counters()
        self.graphs: dict[int, DeviceGraph] = {}
        self.refused: dict[Hashable, tuple[str, str | None]] = {}
        self.on_death: weakref.finalize[..., Region] | None = None
        self._constants = [v for v in vars(gm).values() if isinstance(v, torch.Tensor)]
        self._constants += [*gm.parameters(), *gm.buffers()]
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._lock = threading.RLock()
        self._device = device_named("cpu")
        self.run = _C.Runner(self._miss)
        ledger.enter(self)

    # --- calls --------------------------------------------------------------------------------------------------

    def live(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """Runs the program as it is, in the caller's autocast mode."""
        with torch.no_grad():
            return self._flat(self.gm(*args))

    def _flat(self, results: Any) -> tuple[Any, ...]:
        return (results,) if self.single_result else tuple(results)

    def fall_back(self, reason: str, op: str | None = None, line: str | None = None) -> None:
        """Counts a call outside a graph, or forbids it.

        Raises:
            FallbackError: `require` is set.
        """
        self.counters.fall_back(reason, op, line)
        if self.options.require:
            where = f" at {line}" if line else ""
            raise FallbackError(f"require=True: a call would run outside a graph: {reason}{where}")

    def _miss(self, *args: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return self.owner.with_gradients(args)
        if self.options.mode == "eager" or _C.is_capturing():
            return self.live(args)  # inside another capture the calls are recorded there
        reason = not_capturable(args)
        if reason is not None:
            return self._live_because(reason, None, args)
        key = signature_of(args)
        with self._lock:
            if key in self.refused:
                known, line = self.refused[key]
                return self._live_because(known, line, args)
            count = self._seen.pop(key, 0) + 1
            self._seen[key] = count
            while len(self._seen) > _SIGNATURES_REMEMBERED:
                self._seen.popitem(last=False)
        if count <= self.options.capture_after:
            self.counters.warmups += 1
            return self.live(args)
        return self._capture(key, args)

    def _live_because(self, reason: str, line: str | None, args: Sequence[Any]) -> tuple[Any, ...]:
        self.fall_back(reason, None, line)
        self.counters.live_calls += 1
        return self.live(args)

    # --- capture ------------------------------------------------------------------------------------------------

    def _capture(self, key: Hashable, args: tuple[Any, ...]) -> tuple[Any, ...]:
        start = time.perf_counter()
        graph = self._device.graph()
        located = _Located(self.gm)
        graph.capture_begin(
            [a if isinstance(a, torch.Tensor) else None for a in args], located.line, self._constants
        )
        try:
            with torch.no_grad(), _uncached_autocast():
                results = self._flat(located.run(*args, enable_io_processing=False))
        except BaseException:
            graph.reset()
            raise
        try:
            graph.capture_end([r for r in results if isinstance(r, torch.Tensor)])
            self._keep(key, graph, args, results)
        except CaptureError as error:
            # The captured calls ran: their results are this call's. Only later calls are affected.
            graph.reset()
            with self._lock:
                self.refused[key] = (error.reason, error.line)
            self.counters.live_calls += 1
            self.fall_back(error.reason, None, error.line)
        self.counters.capture_seconds += time.perf_counter() - start
        return results

    def _keep(
        self, key: Hashable, graph: DeviceGraph, args: tuple[Any, ...], results: tuple[Any, ...]
    ) -> None:
        need = graph.bytes()
        cap = self.options.max_bytes
        if cap and max(need.arena, self._device.pool_bytes()) + need.fixed > cap:
            raise CaptureError(
                f"the graph needs {need.arena + need.fixed:,} bytes and max_bytes is {cap:,}: raise it, or leave this size live"
            )
        graph.instantiate(poison=self.options.poison)
        outputs: list[tuple[int, Any]] = []
        tensors = 0
        for r in results:
            if isinstance(r, torch.Tensor):
                outputs.append((tensors, None))
                tensors += 1
            else:
                outputs.append((-1, r))
        with self._lock:
            number = _C.runner_add(self.run, args, graph.executable, outputs)  # type: ignore[attr-defined]
            self.graphs[number] = graph
            self.counters.captures += 1
            self._seen.pop(key, None)
            self._evict()

    def _evict(self) -> None:
        entries = _C.runner_entries(self.run)
        for number, _, _ in entries[self.options.max_graphs :]:
            _C.runner_drop(self.run, number)
            del self.graphs[number]
            self.counters.evictions += 1

    def clear(self) -> None:
        """Drops every graph; the region goes on working and captures anew."""
        with self._lock:
            for number in list(self.graphs):
                _C.runner_drop(self.run, number)
            self.graphs.clear()
            self.refused.clear()
            self._seen.clear()

    # --- what happened ------------------------------------------------------------------------------------------

    def count(self) -> Counters:
        """The region's counters, replays included."""
        total = Counters()
        total.add(self.counters)
        total.graphs = len(self.graphs)
        total.replays = _C.runner_replays(self.run)
        return total
