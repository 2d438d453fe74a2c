"""vLLM's static-graph wrapper over the graphs of any device, for `Platform.get_static_graph_wrapper_cls`.

Owns when to capture, what to keep, and when a graph must not be replayed. How a device records, its adapter knows.
vLLM warms up, pads, and brings inputs to fixed addresses before it calls: nothing is copied here.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from vllm.compilation import monitor
from vllm.compilation.base_static_graph import AbstractStaticGraphWrapper
from vllm.compilation.counter import compilation_counter
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.offloader.base import get_offloader
from vllm.platforms import current_platform
from vllm.utils.torch_utils import weak_ref_tensor

from graphmode import _C
from graphmode.devices.adapter import DeviceGraph, GraphBytes, device_named
from graphmode.errors import CaptureError, FallbackError, MemoryCapError
from graphmode.inspect.captures import Capture, log
from graphmode.inspect.counters import Counters, Replays, ledger
from graphmode.integrations.vllm.places import NoPlace, Place, each_tensor, tensors_in, weights_of, where
from graphmode.options import resolve
from graphmode.program.lines import line_running
from graphmode.runtime.located import uncached_autocast
from graphmode.runtime.refusals import RefuseUnseen

if TYPE_CHECKING:
    from vllm.compilation.cuda_graph import CUDAGraphOptions

Runnable = Callable[..., Any]

_numbers = itertools.count()


class StaticGraphWrapper(AbstractStaticGraphWrapper):  # type: ignore[misc]
    """Wraps a callable of vLLM's: captured once per batch descriptor, replayed from then on.

    Attributes that it has not are the callable's. Outputs are the capture's own tensors, overwritten by each replay.

    Args:
        runnable: what is captured: the model, or one piece of it.
        vllm_config: vLLM's configuration; `additional_config["graphmode"]` has our options.
        runtime_mode: the mode, PIECEWISE or FULL, in which this wrapper acts; in others it only calls `runnable`.
        cudagraph_options: vLLM's: who logs, and whose outputs lie in memory that later captures may reuse.

    Raises:
        OptionError: an unknown option or a bad value.
        UnsupportedError: no graph adapter is installed for the platform's device.
        ValueError: `runtime_mode` is NONE, or no mode of a single call.
    """

    _all_instances: ClassVar[weakref.WeakSet[StaticGraphWrapper]] = weakref.WeakSet()

    def __init__(
        self,
        runnable: Runnable,
        vllm_config: VllmConfig,
        runtime_mode: CUDAGraphMode,
        cudagraph_options: CUDAGraphOptions | None = None,
    ) -> None:
        if runtime_mode not in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
            raise ValueError(f"runtime_mode is PIECEWISE or FULL; got {runtime_mode}: do not wrap what is not captured")
        self.runnable = runnable
        self.vllm_config = vllm_config
        self.compilation_config = vllm_config.compilation_config
        self.runtime_mode = runtime_mode
        self.cudagraph_options = cudagraph_options
        self.graph_pool: Any = None  # there for callers that set it: graphs of one device share their memory anyway
        self._graphs = self._make_graphs()
        StaticGraphWrapper._all_instances.add(self)

    def _make_graphs(self) -> StaticGraphs:
        return StaticGraphs(self.runnable, self.vllm_config, self.cudagraph_options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Replays, captures or calls, as the forward context says.

        Raises:
            FallbackError: `require` is set and the call would run outside a graph that vLLM asked for.
        """
        if not is_forward_context_available():
            return self.runnable(*args, **kwargs)
        context = get_forward_context()
        if context.cudagraph_runtime_mode != self.runtime_mode:
            return self.runnable(*args, **kwargs)
        return self._graphs.run(context.batch_descriptor, args, kwargs)

    def __getattr__(self, key: str) -> Any:
        runnable = self.__dict__.get("runnable")  # absent while a copy is made
        if runnable is None or not hasattr(runnable, key):
            raise AttributeError(
                f"neither the static-graph wrapper nor the {type(runnable).__name__} in it has {key!r}"
            )
        return getattr(runnable, key)

    def unwrap(self) -> Runnable:
        """The innermost callable."""
        inner: Runnable = self.runnable
        return inner.unwrap() if hasattr(inner, "unwrap") else inner

    @property
    def cudagraph_wrapper(self) -> StaticGraphWrapper:
        """Itself, by the name under which vLLM looks for it."""
        return self

    def clear_graphs(self) -> None:
        """Drops every graph and its memory; the wrapper captures anew."""
        self._graphs.clear()

    @classmethod
    def clear_all_graphs(cls) -> None:
        """`clear_graphs` of every wrapper of this process."""
        for wrapper in list(cls._all_instances):
            wrapper.clear_graphs()


@dataclass
class _Entry:
    graph: DeviceGraph
    place: Place
    spot: bytes | None  # of `_C.spot`: the place, but for the weights, in native code; None where there is none
    outputs: Any
    elsewhere: Place | None = None  # where the last call that it could not serve had its inputs


class _NoteUnseen(RefuseUnseen):
    """Lets the call go on, since its effects before have happened, and remembers why it can't be captured."""

    refusal: CaptureError | None = None

    def __torch_function__(
        self, func: Runnable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except CaptureError as error:
            self.refusal = self.refusal or error
        return func(*args, **(kwargs or {}))


class StaticGraphs:
    """The graphs of one callable, by batch descriptor, the least recently used first; counted in the ledger."""

    def __init__(self, runnable: Runnable, vllm_config: VllmConfig, wanted: CUDAGraphOptions | None) -> None:
        given = vllm_config.additional_config
        self.options = resolve(given.get("graphmode", {}) if isinstance(given, dict) else {})
        self.number = next(_numbers)
        self.counters = Counters()
        self.replayed = Replays()
        self.breaks: list[tuple[str, str, str]] = []  # none: what can't be captured makes the whole call live
        self.stretches: list[StaticGraphs] = []
        self.on_death: weakref.finalize[..., Any] | None = None
        self.refused: dict[Hashable, tuple[str, str | None]] = {}
        self._runnable = runnable
        self._logs = wanted is None or wanted.debug_log_enable
        self._device = device_named(
            current_platform.device_type if self.options.device == "auto" else self.options.device
        )
        self._executes = self._device.capabilities.capture_executes
        # What a capture only records writes to the addresses of dead tensors too: the device must keep them for it.
        self._weakly = None if self._executes else self._weak_references()
        self._drops_outputs = self._weakly is not None and (wanted is None or wanted.weak_ref_output)
        self._weights = list(weights_of(runnable))
        self._places = _C.HeldPlaces()
        self._entries: dict[Hashable, _Entry] = {}
        self._open: set[Hashable] = set()  # captured by some thread now
        self._lock = threading.RLock()
        if self.options.verify:
            self.counters.note("not verified: a static graph can be replayed on its own memory only")
        ledger.enter(self)

    # --- what a platform may know better -------------------------------------------------------------------------

    def _weak_references(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What makes a tensor over another one's memory that keeps it not alive; None where nothing does."""
        return weak_ref_tensor if hasattr(torch.ops._C, "weak_ref_tensor") else None

    def _live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call outside graphs, though vLLM asked for one."""
        return self._runnable(*args, **kwargs)

    def _inside_a_capture(self) -> bool:
        """Whether this thread's calls are recorded already."""
        return self._device.is_capturing()

    @contextlib.contextmanager
    def _recording(self, key: Hashable, graph: DeviceGraph) -> Iterator[None]:
        """Around the captured call; raises what it raises."""
        yield

    def _captured(self, key: Hashable) -> None:
        """The capture ended, and nobody relies on it yet: may raise CaptureError."""

    def _refuse(self, key: Hashable, why: CaptureError) -> None:
        """A size has no graph, and the call is about to run live."""
        self.refused[key] = why.reason, why.line

    def _before_replay(self, key: Hashable) -> str | None:
        """Waits for whatever must have ended by then; says why this call can't be replayed, where it can't."""
        get_offloader().sync_prev_onload()  # weights that were fetched ahead are there
        return None

    def _launch(self, key: Hashable, graph: DeviceGraph) -> None:
        graph.replay([])

    def _gone(self, key: Hashable) -> None:
        """The graph of a size was dropped."""

    # --- calls --------------------------------------------------------------------------------------------------

    def run(self, key: Hashable | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call that vLLM wants a graph for."""
        if self.options.mode == "eager" or self._inside_a_capture():
            return self._live(args, kwargs)  # inside another capture the calls are recorded there
        weights = self._places.now(self._weights)
        looked_at = torch._C._len_torch_dispatch_stack() > 0 or torch.is_grad_enabled()
        spot = None if looked_at else _C.spot(args, kwargs)
        why_not = None
        with self._lock:
            entry = self._entries.get(key)
            if spot is not None and entry is not None and entry.spot == spot and entry.place.weights == weights:
                self._entries[key] = self._entries.pop(key)
                entry.elsewhere = None
                why_not = self._replay(key, entry)
                if why_not is None:
                    return each_tensor(entry.outputs, _same)
        if why_not is not None:
            return self._live_because(why_not, None, args, kwargs)
        try:
            place = self._place(key, args, kwargs, weights)
        except NoPlace as why:
            return self._live_because(str(why), None, args, kwargs)
        with self._lock:
            entry = self._entries.get(key)
            fits = entry is not None and entry.place == place
            if entry is not None:
                if fits:
                    self._entries[key] = self._entries.pop(key)
                elif entry.elsewhere != place:
                    why_not = entry.place.difference(place)
                entry.elsewhere = None if fits else place  # where it is twice in a row, it is captured anew
        if entry is not None and fits:
            with self._lock:  # nobody resets it meanwhile; and one memory serves one replay at a time
                why_not = self._replay(key, entry)
            if why_not is None:
                return each_tensor(entry.outputs, _same)
        if why_not is not None:
            return self._live_because(why_not, None, args, kwargs)
        if key in self.refused:
            return self._live_because(*self.refused[key], args, kwargs)
        with self._lock:
            why_not = self._why_not_now(key)
            if why_not is None:
                self._open.add(key)
                self._drop(key)
        if why_not is not None:
            return self._live_because(why_not, None, args, kwargs)
        try:
            return self._capture(key, place, spot, args, kwargs)
        finally:
            self._open.discard(key)

    def _place(self, key: Hashable | None, args: tuple[Any, ...], kwargs: dict[str, Any], weights: bytes) -> Place:
        if key is None:
            raise NoPlace("vLLM asked for a graph and gave no batch descriptor")
        if torch._C._len_torch_dispatch_stack() > 0:
            raise NoPlace("a torch dispatch mode looks at the call, and would not see a replay")
        inputs: dict[int | str, Any] = {i: where(a) for i, a in enumerate(args)}
        inputs.update((name, where(value)) for name, value in kwargs.items())
        return Place(_C.mode_bits(), weights, inputs)

    def _live_because(self, reason: str, line: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._fall_back(reason, line)
        return self._live(args, kwargs)

    def _fall_back(self, reason: str, line: str | None) -> None:
        self.counters.fall_back(reason, None, line)
        if self.options.require:
            where = f" at {line}" if line else ""
            raise FallbackError(f"require=True: a call would run outside a graph: {reason}{where}")
        self.counters.live_calls += 1

    def _replay(self, key: Hashable, entry: _Entry) -> str | None:
        """Nothing has happened where it returns why not."""
        why_not = self._before_replay(key)
        if why_not is not None:
            return why_not
        try:
            with self._device.in_turn(()):
                self._launch(key, entry.graph)
        except BaseException:
            with self._lock:
                if self._entries.get(key) is entry:
                    self._drop(key)
            raise
        self.replayed.replays += 1
        return None

    # --- capture ------------------------------------------------------------------------------------------------

    def _why_not_now(self, key: Hashable) -> str | None:
        if not monitor.cudagraph_capturing_enabled:
            return (
                "vLLM allows no capture now: it makes its graphs at start-up, of the sizes in cudagraph_capture_sizes"
            )
        if self._room() < 1:
            return "max_graphs allows no graph"
        return "another thread is capturing this batch" if key in self._open else None

    def _capture(
        self, key: Hashable, place: Place, spot: bytes | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        start = time.perf_counter()
        graph = self._device.graph()
        graph.fuse(self.options.fuel)
        graph.overwritten()  # vLLM reads a step's results before the next step
        unseen = _NoteUnseen() if self._executes else None  # what only records has no values that Python could read
        outputs, recorded = None, False
        try:
            with _undisturbed(), self._device.in_turn(()):
                get_offloader().sync_prev_onload()
                graph.capture_begin([], line_running, None)
                with unseen or contextlib.nullcontext(), self._recording(key, graph):
                    outputs = self._record(args, kwargs)
                recorded = True
                graph.capture_end(None)
            if unseen is not None and unseen.refusal is not None:
                raise unseen.refusal
            if any(t.requires_grad for t in tensors_in(outputs)):
                raise CaptureError("a result needs gradients, which no replay makes: call under inference_mode()")
            self._check_cap(graph)
            graph.instantiate(poison=self.options.poison)
            with self._device.in_turn(()):
                self._captured(key)
        except BaseException as error:
            refused = self._refusal(graph, error, recorded)
            graph.reset()
            self._gone(key)
            if refused is None:
                raise
            self._refuse(key, refused)
            self._fall_back(refused.reason, refused.line)
            return outputs if self._executes else self._live(args, kwargs)
        entry = _Entry(graph, place, spot, each_tensor(outputs, self._weakly or _same))
        with self._lock:
            self._entries[key] = entry
            self._evict(self._room())
        if not self._executes:
            with self._lock:
                why_not = self._replay(key, entry)
            if why_not is not None:
                return self._live_because(why_not, None, args, kwargs)
        self._note_capture(key, graph, time.perf_counter() - start)
        return outputs

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = self._runnable(*args, **kwargs)
        get_offloader().join_after_forward()
        # Given back before the capture ends, the memory of the last piece's outputs serves the next capture as well.
        return each_tensor(outputs, self._weakly) if self._weakly is not None and self._drops_outputs else outputs

    def _refusal(self, graph: DeviceGraph, error: BaseException, recorded: bool) -> CaptureError | None:
        """The error as a refusal; None where it is the callable's own, which is the caller's."""
        if recorded:
            return error if isinstance(error, CaptureError) else None
        if self._executes or not isinstance(error, Exception):
            return None
        if isinstance(error, CaptureError):
            return error
        if graph.refusal() or isinstance(error, RuntimeError):  # nothing has run: what raises by itself does so live
            lines = str(error).strip().splitlines() or ["no message"]
            short_of = isinstance(error, torch.OutOfMemoryError)
            return CaptureError(f"{type(error).__name__} while it was captured: {lines[0]}", for_want_of_room=short_of)
        return None

    def _check_cap(self, graph: DeviceGraph) -> None:
        cap = self.options.max_bytes
        need = graph.bytes()
        while cap and any(b.fixed for b in self.bytes()) and self._bytes_with(need) > cap:
            with self._lock:
                self._evict(len(self._entries) - 1)
        if cap and self._bytes_with(need) > cap:
            raise MemoryCapError(
                f"the graph needs {need.arena + need.fixed:,} bytes and max_bytes is {cap:,}",
                "the graph needs more bytes than max_bytes allows: raise it, or leave this size live",
            )

    def _bytes_with(self, need: GraphBytes) -> int:
        return max(need.arena, self._device.pool_bytes()) + need.fixed + ledger.fixed_bytes()

    def _note_capture(self, key: Hashable, graph: DeviceGraph, seconds: float) -> None:
        self.counters.captures += 1
        self.counters.capture_seconds += seconds
        compilation_counter.num_cudagraph_captured += 1
        if self._logs and log.isEnabledFor(logging.INFO):
            sizes = (int(getattr(key, "num_tokens", 0)),)
            log.info("%s", Capture(self.number, type(self._runnable).__name__, sizes, graph.bytes(), seconds))

    # --- what is kept -------------------------------------------------------------------------------------------

    def _room(self) -> int:
        held = self._device.capabilities.max_graphs
        return self.options.max_graphs if held is None else min(held, self.options.max_graphs)

    def _evict(self, keep: int) -> None:
        while len(self._entries) > keep:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        gone = self._entries.pop(key, None)
        if gone is not None:
            self._reset(key, gone)
            self.counters.evictions += 1

    def _reset(self, key: Hashable, entry: _Entry) -> None:
        entry.graph.reset()
        self._gone(key)

    def clear(self) -> None:
        """Drops every graph and its memory."""
        with self._lock:
            for key, entry in self._entries.items():
                self._reset(key, entry)
            self._entries.clear()
            self.refused.clear()

    @property
    def graphs(self) -> dict[int, DeviceGraph]:
        """The graphs held, the least recently used first."""
        with self._lock:
            return {i: e.graph for i, e in enumerate(self._entries.values())}

    def bytes(self) -> list[GraphBytes]:
        """Memory of each graph held."""
        with self._lock:
            return [g.bytes() for g in self.graphs.values()]

    def count(self) -> Counters:
        """The counters, replays included."""
        total = Counters()
        total.add(self.counters)
        total.graphs = len(self._entries)
        total.replays += self.replayed.replays
        return total


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No collection frees anything half-way through a recording, and no cast of a weight is remembered."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with uncached_autocast():
            yield
    finally:
        if collects:
            gc.enable()
