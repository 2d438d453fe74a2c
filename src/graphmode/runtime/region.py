"""Policy of one compiled region: which call warms, captures, replays or runs live, and what is kept.

The hot path is native (`_C.Runner`); this is where it lands when no graph fits.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx as fx

from graphmode import _C
from graphmode.devices.adapter import DeviceGraph, GraphBytes, device_named
from graphmode.devices.cpu import CpuGraph
from graphmode.errors import CaptureError, FallbackError, GraphModeError, MemoryCapError, first_line
from graphmode.inspect.captures import log_capture
from graphmode.inspect.counters import Counters, ledger
from graphmode.options import Options
from graphmode.program.breaks import find_breaks
from graphmode.program.effects import (
    gives_memory_of_its_own,
    handed_on,
    is_opaque,
    looks_at_places,
    switches_mode,
    written_inputs,
)
from graphmode.program.lines import line_of
from graphmode.program.parts import Live, Parts, constants, cut
from graphmode.program.updates import NONE, Updates, find_updates
from graphmode.runtime.admission import Admission
from graphmode.runtime.located import Located, uncached_autocast
from graphmode.runtime.modes import Modes
from graphmode.runtime.pinned import Pinned, PinnedGraphs, tensors_of
from graphmode.runtime.resume import Resume
from graphmode.runtime.script import kinds_of, script_of
from graphmode.runtime.signature import not_capturable, signature_of
from graphmode.runtime.slots import Slots
from graphmode.runtime.updating import Updating
from graphmode.runtime.verify import difference

_numbers = itertools.count()
_REFUSALS_REMEMBERED = 4096  # older ones are tried again

_TRIM_EVERY = 16  # evictions, each some 100 ms of capturing; giving memory back takes 6 ms
_PUT_OFF = "its last graph was dropped before it paid: more sizes come in turn than max_graphs allows"
_OVER_CAP = "the graph needs more bytes than max_bytes allows: raise it, or leave this size live"
_DROPPED = "its graph was dropped by another thread while this call waited for it"
_OUT_OF_MEMORY = "the device has no memory left for a graph of this size"
_NOT_THE_SCRIPT_S = "an argument's class has a __torch_function__, or a number is divided by 0 or beyond 64 bits"
_NO_UPDATE = "integers select a graph each, since their graph could not be captured for any: {}"
_NO_MODES = Modes()

WithGradients = Callable[[Sequence[Any]], Any]


class Region:
    """Runs one program: live, captured, replayed, or in parts around calls that must run live."""

    def __init__(
        self,
        gm: fx.GraphModule,
        options: Options,
        with_gradients: WithGradients,
        modes: Modes = _NO_MODES,
        device: str = "cpu",
        owner: torch.nn.Module | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.gm = gm
        self.options = options
        self.counters = Counters()
        self.graphs: dict[int, DeviceGraph] = {}
        self.refused: dict[Hashable, tuple[str, str | None, int | None]] = {}  # reason, line; graphs gone by then
        self.on_death: weakref.finalize[..., Region] | None = None
        (output,) = gm.graph.find_nodes(op="output")
        self.single_result = not isinstance(output.args[0], (tuple, list))
        returned = [output.args[0]] if self.single_result else output.args[0]
        self._owned = [gives_memory_of_its_own(r) for r in returned]
        self.breaks: list[tuple[str, str, str]] = []  # (op, reason, the user's line)
        self.parts: Parts | None = None
        self.stretches: list[Region] = []
        self._with_gradients = with_gradients
        self._constants = constants(gm)
        self._admission = Admission(options.capture_after, back_off=not options.require)
        self._written = written_inputs(gm)
        self._lock = threading.RLock()
        self._device = device_named(device if options.device == "auto" else options.device)
        capabilities = self._device.capabilities
        self._handed_on = handed_on(gm) if capabilities.rebind_inputs else set()
        self._pinned = (
            None
            if capabilities.rebind_inputs
            else PinnedGraphs(self._written, self._device, self._constants, looks_at_places(gm))
        )
        self._updates = find_updates(gm, capabilities.updates) if self._pinned is not None else NONE
        unused = {i for i, p in enumerate(gm.graph.find_nodes(op="placeholder")) if not p.users}
        self._unused = unused if self._pinned is not None else set()
        self.modes = modes
        self.run = _C.Runner(self._miss, self._go_on_live)
        _C.runner_modes(self.run, modes.enables_grad, -1 if modes.leaves_grad is None else modes.leaves_grad)
        self._resumes: dict[int, Resume] = {}  # by number of the graph
        self._keys: dict[int, int] = {}  # hashes of the signatures
        self._trimmed = 0  # evictions until memory was given back last
        self._ends_with: weakref.ref[torch.nn.Module] | None = None
        self._scripts: dict[str, _C.Script | str] = {}  # by kinds of arguments, made at the first live call
        if owner is not None:
            self._live_as_long_as(owner)
        self.replayed = _C.runner_count(self.run)
        ledger.enter(self)
        found = find_breaks(gm, None if capabilities.capture_executes else self._device.name)
        if found and options.mode != "eager":
            self._split(found)

    # --- calls --------------------------------------------------------------------------------------------------

    def live(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """Runs the program as it is, in the caller's modes. Nothing here needs gradients: see `_miss`."""
        if not _C.is_observed():
            script = self._script_for(kinds_of(args))
            results = None if isinstance(script, str) else script.run(tuple(args))
            if results is not None:
                return tuple(results)
            why = script if isinstance(script, str) else _NOT_THE_SCRIPT_S
            self.counters.note(f"a call outside graphs ran as Python: {why}")
        return self._flat(self.gm(*args))

    def _script_for(self, kinds: str) -> _C.Script | str:
        """The script for arguments of these kinds, or why there is none."""
        if kinds not in self._scripts:
            try:
                self._scripts[kinds] = script_of(self.gm, kinds, self.options.fuel)
            except _C.Unscriptable as why:
                self._scripts[kinds] = str(why)
        return self._scripts[kinds]

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

    def rehearse(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """Runs a call that is not worth a graph."""
        with self.modes.undone_by_an_error():
            done = self._under_autograd(args)
            if done is None:
                self.counters.warmups += 1
                done = self.live(args)
            return done

    def _under_autograd(self, args: Sequence[Any]) -> tuple[Any, ...] | None:
        """The results where gradients or tangents are wanted; else None."""
        grad = torch.is_grad_enabled() or self.modes.enables_grad
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if (grad and any(t.requires_grad for t in tensors)) or any(map(_C.has_tangent, tensors)):
            what = "has a tangent (forward-mode AD)" if any(map(_C.has_tangent, tensors)) else "needs gradients"
            self.fall_back(f"an input {what}: the call runs under autograd, outside graphs")
            self.counters.live_calls += 1
            return tuple(self._with_gradients(args))
        return None

    def _given(self, args: Sequence[Any]) -> list[int]:
        """Positions that are handed on at this call. A tensor that stands at several is an input like any other."""
        if not self._handed_on:
            return []
        standing = collections.Counter(id(a) for a in args)
        return [i for i in sorted(self._handed_on) if standing[id(args[i])] == 1]

    def _seen_by_a_graph(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with a number for tensors that the program does not use: those may be of another device."""
        if not self._unused:
            return args
        return tuple(0 if i in self._unused and isinstance(a, torch.Tensor) else a for i, a in enumerate(args))

    def _miss(self, *args: Any) -> tuple[Any, ...]:
        with self.modes.undone_by_an_error():
            return self._serve(args)

    def _serve(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        done = self._under_autograd(args)
        if done is not None:
            return done
        if self.options.mode == "eager" or self._device.is_capturing():
            return self.live(args)  # inside another capture the calls are recorded there
        if self.parts is not None:
            return self._in_parts(args)
        called_with, args = args, self._seen_by_a_graph(args)
        given = self._given(args)
        reason = not_capturable(self._device, args, given)
        if reason is not None:
            return self._live_because(reason, None, args)
        updates = self._updates  # once: what is left out of the signature is what this call's graph is told
        placed = self._pinned is not None and self._pinned.placed
        key = signature_of(args, given, told=updates.told, placed=placed)
        with self._device.in_turn(args):  # one after the other: who waited here may find what another thread captured
            with self._lock:
                ready = None if self._pinned is None else self._find_pinned(self._pinned, key, args)
                refused = None if ready is not None else self._refused(key)
                wanted = ready is None and refused is None and self._admission.wants(hash(key))
                put_off = self._admission.puts_off(hash(key))
                too_large = wanted and self._admission.too_large(args, given)
            if ready is not None:
                replayed = _C.runner_replay(self.run, ready.number, args)
                return replayed if replayed is not None else self._live_because(_DROPPED, None, args)
            if wanted and not too_large:
                return self._capture(key, args, called_with, updates)
        if refused is not None:
            return self._live_because(*refused, args)
        if too_large:
            return self._live_because(_OVER_CAP, None, args)
        if self._pinned is not None:
            self._pinned.seen(args)
        if put_off:
            return self._live_because(_PUT_OFF, None, args)
        self.counters.warmups += 1
        return self.live(args)

    def _refused(self, key: Hashable) -> tuple[str, str | None] | None:
        """Why a signature has no graph, and the line; None where one may be tried, for the first time or again."""
        reason, line, freed = self.refused.get(key, (None, None, None))
        if reason is None:
            return None
        if freed is not None and freed != self._device.freed:
            del self.refused[key]
            self._admission.stale(hash(key))
            return None
        return reason, line

    def _live_because(self, reason: str, line: str | None, args: Sequence[Any]) -> tuple[Any, ...]:
        self.fall_back(reason, None, line)
        self.counters.live_calls += 1
        return self.live(args)

    def _in_parts(self, args: Sequence[Any]) -> tuple[Any, ...]:
        assert self.parts is not None
        for op, reason, line in self.breaks:
            self.fall_back(reason, op, line)
            self.counters.breaks += 1
        return self._flat(self.parts(*args))

    def _find_pinned(self, pinned: PinnedGraphs, key: Hashable, args: Sequence[Any]) -> Pinned | None:
        found = pinned.find(key, args)
        if found is None:
            if (stale := pinned.drop_moved(key, args)) is not None:
                _C.runner_drop(self.run, stale)  # its end; a thread in a replay holds it
                self._forget_dropped()
                self.counters.evictions += 1
                self._admission.stale(hash(key))  # it is captured by this call
            elif pinned.serves(key) and not self._admission.puts_off(hash(key)):
                self._admission.stale(hash(key))  # the program is warm, for other weights
        return found

    # --- breaks -------------------------------------------------------------------------------------------------

    def _split(self, breaks: dict[fx.Node, str]) -> None:
        """Runs these calls live from now on, and makes graphs of what lies between."""
        self.breaks = [(_name(n.target), reason, line_of(n)) for n, reason in breaks.items()]
        parts = cut(self.gm, breaks)
        owner = None if self._ends_with is None else self._ends_with()
        for part in parts.parts:
            if isinstance(part, Live):
                parts.run_stretch.append(None)
            elif part.computes():
                stretch = Region(part.gm, self.options, self._with_gradients, device=self._device.name, owner=owner)
                self.stretches.append(stretch)
                parts.run_stretch.append(stretch.run)
            else:
                parts.run_stretch.append(part.gm)
        self.parts = parts

    # --- capture ------------------------------------------------------------------------------------------------

    def _capture(
        self, key: Hashable, args: tuple[Any, ...], called_with: tuple[Any, ...], updates: Updates
    ) -> tuple[Any, ...]:
        start = time.perf_counter()
        graph = self._device.graph()
        located = Located(self.gm, graph, updates.calls)
        launch = Updating(graph, updates.lists(args), self.counters) if updates.calls else partial(graph.replay, [])
        graph.go_on_with(located.resume.needs)
        graph.hand_on(self._given(args))
        graph.fuse(self.options.fuel)
        capabilities = self._device.capabilities
        executes, ran = capabilities.capture_executes, False
        slots = None if self._pinned is None or capabilities.keeps_memory else self._pinned.slots(args)
        given = args if slots is None else tuple(slots.args)
        native: _C.PinnedGraph | None = None
        try:
            graph.capture_begin(tensors_of(given), located.line, self._constants)
            try:
                if self._pinned is not None and slots is None:
                    slots = self._pinned.slots(args)
                    given = tuple(slots.args)
                with uncached_autocast(), torch._C._AutoDispatchBelowAutograd():
                    results = self._flat(located.run(*given, enable_io_processing=False))
            except Exception as error:
                if executes:  # it is the user's own
                    raise
                located.blame()  # nothing ran: if the call raises by itself, it does so again, live
                raise _not_captured(error, located) from error
            ran = True
            graph.capture_end(_tensors(results))
            held = graph.bytes()
            if isinstance(launch, Updating):
                launch.prove(updates.told_of(args))
            if self._pinned is not None and slots is not None:
                native = self._pinned.graph(launch, slots, _tensors(results), self.options.poison, updates.told)
            number = self._keep(key, graph, args, called_with, results, slots, native, located.resume)
            if isinstance(launch, Updating):
                launch.failed = partial(_drop, weakref.ref(self), number)
            owner = None if self._ends_with is None else self._ends_with()
            log_capture(self.number, self.gm, owner, args, held, time.perf_counter() - start)
        except CaptureError as error:
            graph.reset()
            if executes and not ran:  # raised by a call of the program
                raise
            if not executes:  # what raises by itself, too, was no fault of the capture
                results = self.live(args)
                if updates.calls and not (error.for_want_of_room or isinstance(error, MemoryCapError)):
                    self._update_none(error)
                else:
                    self._refuse(key, error, located)
                return results
            self._refuse(key, error, located)
            # the captured calls ran: their results are this call's, only later calls are affected
            if self._pinned is not None and slots is not None and native is None:
                native = self._pinned.graph(launch, slots, _tensors(results), self.options.poison)
        except BaseException:
            graph.reset()
            raise
        if native is not None:
            inputs = tensors_of(args)
            tensors = native.hand_out(inputs) if executes else native.run(inputs, updates.told_of(args))
            results = tuple(constant if i < 0 else tensors[i] for i, constant in _outputs(results))
        self.counters.capture_seconds += time.perf_counter() - start
        return _no_views(results, self._owned)

    def _update_none(self, error: CaptureError) -> None:
        """What failed may be the update: from now on integers are in the signature, as those of any other call."""
        with self._lock:
            self._updates = NONE
        self.counters.warmups += 1
        self.counters.note(_NO_UPDATE.format(error.reason))

    def drop(self, number: int) -> None:
        """Drops a graph that is of no more use; the next call captures anew."""
        with self._lock:
            if _C.runner_drop(self.run, number):
                self._admission.stale(self._keys[number])
                self.counters.evictions += 1
            self._forget_dropped()

    def _refuse(self, key: Hashable, error: CaptureError, located: Located) -> None:
        with self._lock:
            if located.culprit is not None and self.parts is None:
                if self._pinned is not None:
                    self.clear()  # a program in parts has no graph of the whole
                self._split({located.culprit: error.reason})
            else:
                freed = self._device.freed if error.for_want_of_room else None
                self.refused[key] = (error.reason, error.line, freed)
                if len(self.refused) > _REFUSALS_REMEMBERED:
                    del self.refused[next(iter(self.refused))]
        self.counters.live_calls += 1
        op = _name(located.culprit.target) if located.culprit is not None else None
        self.fall_back(error.reason, op, error.line)

    def _go_on_live(
        self, number: int, args: tuple[Any, ...], position: int, op: str, reason: str, *found: Any
    ) -> tuple[Any, ...]:
        """A replayed call gave other sizes: the rest of this call runs live, and that node is a break from now on."""
        with self._lock:
            resume = self._resumes.get(number)
        if resume is None:
            raise GraphModeError(f"{reason}, and the graph was dropped meanwhile; what came before it has happened")
        with self.modes.undone_by_an_error():
            results = self._flat(resume.go_on(args, position, op, *found))
        node = resume.nodes[position]
        with self._lock:
            if self.parts is None:
                self.clear()
                self._split({node: f"{op} gives other sizes or strides from call to call"})
        self.counters.live_calls += 1
        self.fall_back(reason, op, line_of(node))
        return results

    def _keep(
        self,
        key: Hashable,
        graph: DeviceGraph,
        args: tuple[Any, ...],
        called_with: tuple[Any, ...],
        results: tuple[Any, ...],
        slots: Slots | None,
        native: _C.PinnedGraph | None,
        resume: Resume,
    ) -> int:
        self._check_cap(graph, args)
        graph.instantiate(poison=self.options.poison)
        if self.options.verify:
            self._verify(graph, args if slots is None else slots.args)
        with self._lock:
            if self._pinned is not None and slots is not None and native is not None:
                number = _C.runner_add(self.run, called_with, native, _outputs(results))
                self._pinned.keep(key, number, slots, args)
            else:
                assert isinstance(graph, CpuGraph) and graph.executable is not None
                number = _C.runner_add(self.run, args, graph.executable, _outputs(results))
                self._resumes[number] = resume
            self.graphs[number], self._keys[number] = graph, hash(key)
            self.counters.captures += 1
            self._admission.captured(hash(key))
            self._evict()
        return number

    def _live_as_long_as(self, owner: torch.nn.Module) -> None:
        """Dynamo may hold what it compiled longer than the model lives: its graphs go with the module."""
        me = weakref.ref(self)

        def bury(_: object) -> None:
            region = me()
            if region is not None:
                region.clear()

        self._ends_with = weakref.ref(owner, bury)

    def _check_cap(self, graph: DeviceGraph, args: Sequence[Any]) -> None:
        """Makes room for a graph under max_bytes, or refuses it."""
        cap = self.options.max_bytes
        if not cap:
            return
        need = graph.bytes()
        arena = max(need.arena, self._device.pool_bytes())
        # Dropping a graph helps only where it holds constants. Other regions' locks are taken here, so not under ours.
        while arena + need.fixed + ledger.fixed_bytes() > cap and any(b.fixed for b in self.bytes()):
            with self._lock:
                self._evict(keep=len(self.graphs) - 1)
        if arena + need.fixed + ledger.fixed_bytes() > cap:
            if need.arena + need.fixed > cap:  # by itself, whatever others hold
                self._admission.over_cap(args, self._given(args))
            raise MemoryCapError(
                f"the graph needs {need.arena + need.fixed:,} bytes and max_bytes is {cap:,}",
                _OVER_CAP,
            )

    def _verify(self, graph: DeviceGraph, args: Sequence[Any]) -> None:
        opaque = next((n for n in self.gm.graph.nodes if is_opaque(n) and not switches_mode(n)), None)
        if opaque is not None:
            self.counters.note(f"not verified: {_name(opaque.target)} would run twice")
            return
        if not self._device.capabilities.capture_executes:
            self.counters.note("not verified: a graph of this device runs on its own memory only")
            return
        try:
            with self.modes.undone_by_an_error():
                found = difference(graph, self.live, args, self._written)
        except Exception as error:  # whatever an op raises on values it has changed already
            self.counters.note(f"not verified: {type(error).__name__}: {error}")
            return
        if found is not None:
            raise CaptureError(f"verify: {found}; the graph is not used")

    def _evict(self, keep: int | None = None) -> None:
        """Drops the least recently used graphs beyond `keep`, by default max_graphs."""
        if keep is None:
            held = self._device.capabilities.max_graphs
            keep = self.options.max_graphs if held is None else min(held, self.options.max_graphs)
        for number, replays, _ in _C.runner_entries(self.run)[keep:]:
            _C.runner_drop(self.run, number)
            self._admission.dropped(self._keys[number], replays)
            self.counters.evictions += 1
        self._forget_dropped()
        if self.counters.evictions - self._trimmed >= _TRIM_EVERY:
            # What captures and graphs of ever other sizes leave in the heap is too small and scattered to be used.
            self._trimmed = self.counters.evictions
            _C.give_back_free_memory()

    def _forget_dropped(self) -> None:
        """Lets go of graphs that the runner has no more: evicted, or dropped by itself."""
        kept = {number for number, _, _ in _C.runner_entries(self.run)}
        for number in [n for n in self.graphs if n not in kept]:
            del self.graphs[number], self._keys[number]
            self._resumes.pop(number, None)
        if self._pinned is not None:
            self._pinned.keep_only(kept)

    def clear(self) -> None:
        """Drops every graph; the region goes on working and captures anew."""
        with self._lock:
            for number in list(self.graphs):
                _C.runner_drop(self.run, number)
            self.graphs.clear()
            self._resumes.clear()
            if self._pinned is not None:
                self._pinned.table.clear()
            self._keys.clear()
            self.refused.clear()
            self._admission.clear()

    # --- what happened ------------------------------------------------------------------------------------------

    def bytes(self) -> list[GraphBytes]:
        """Memory of each graph held."""
        with self._lock:
            return [g.bytes() for g in self.graphs.values()]

    def count(self) -> Counters:
        """The region's counters, replays included."""
        total = Counters()
        total.add(self.counters)
        total.graphs = len(self.graphs)
        total.replays += self.replayed.replays
        return total


def _drop(of: weakref.ref[Region], number: int) -> None:
    region = of()  # weakly: native code holds a graph's launch, where no collector looks
    if region is not None:
        region.drop(number)


def _not_captured(error: Exception, located: Located) -> CaptureError:
    if isinstance(error, torch.OutOfMemoryError):
        located.culprit = None  # no one call's fault
        return CaptureError(_OUT_OF_MEMORY, line=located.line(), for_want_of_room=True)
    op = _name(located.node.target) if located.node is not None else "the program"
    reason = f"{op} can't be captured: {first_line(error)}"
    return CaptureError(reason, line=located.line())


def _name(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))


def _tensors(results: Sequence[Any]) -> list[torch.Tensor]:
    return [r for r in results if isinstance(r, torch.Tensor)]


def _outputs(results: Sequence[Any]) -> list[tuple[int, Any]]:
    """Per result: its index among the tensors, or -1 and a constant. A tensor given twice stays one object."""
    index = {id(t): i for i, t in reversed(list(enumerate(_tensors(results))))}
    return [(index[id(r)], None) if isinstance(r, torch.Tensor) else (-1, r) for r in results]


def _no_views(results: Sequence[Any], owned: Sequence[bool]) -> tuple[Any, ...]:
    """Results of a capture, without the views that composites make of their own memory below autograd."""
    own: dict[int, Any] = {}
    for r, whole in zip(results, owned, strict=True):
        if not (whole and isinstance(r, torch.Tensor) and _C.is_plain(r) and r._is_view()):
            continue
        if not (r.is_inference() or r.is_conj() or r.is_neg()):
            fresh = torch.empty(0, dtype=r.dtype, device=r.device)
            own[id(r)] = fresh.set_(r.untyped_storage(), r.storage_offset(), r.shape, r.stride())
    return tuple(own.get(id(r), r) for r in results)
