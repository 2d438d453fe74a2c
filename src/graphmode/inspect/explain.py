"""`explain`: runs a model and says what was captured, what was not and why, and what it costs; a table, and as data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from graphmode.inspect.counters import Counted, Fallback, ledger
from graphmode.inspect.dynamo import dynamo_breaks
from graphmode.inspect.report import Report, report
from graphmode.options import Options, resolve

_REPLAYS = 5

_ON_DEVICE = "keep the decision on the device: torch.where, masks or clamp in the place of Python `if`"
_BY_MASK = "nothing to change; where it is hot, use a fixed size with a mask"
# What to do about a break, by what its reason says; the last ones are for whatever else Dynamo calls a reason.
_CURES = (
    ("reads a value from a tensor", _ON_DEVICE),
    ("Data-dependent branching", _ON_DEVICE),
    ("Tensor.item()", _ON_DEVICE),
    ("Tensor.tolist()", _ON_DEVICE),
    ("Data dependent operator", _ON_DEVICE),
    ("size depends on data", _BY_MASK),
    ("Dynamic shape operator", _BY_MASK),
    ("needs gradients", "call under torch.inference_mode() or torch.no_grad() if you need no gradients"),
    ("torch.compiler.disable", "remove the disable where its function can be traced"),
    ("recompile_limit", "pass what changes at each call as a tensor, or mark the size with torch._dynamo.mark_dynamic"),
    ("higher-order op", "nothing to change: its calls run live"),
    ("no plain strided CPU tensor", "nothing to change; sparse, quantised and subclass inputs run live"),
    ("changes the size", "return a new tensor in the place of resizing an input"),
    ("Dynamo left a function", "see the reason: Dynamo runs the whole function in Python; move that call out of it"),
    ("Dynamo failed to trace", "see the reason beside it: the graphs of other calls stay"),
    ("had no op to capture", "nothing to change"),
    ("engine ", 'nothing to change; engine="native" is captured'),
    ("Dynamo split", "nothing to change: both sides are graphs; where it is hot, move that call out of the model"),
)


@dataclass(frozen=True)
class RegionRow:
    """One compiled region: one of Dynamo's graphs, or a stretch of one between two breaks."""

    calls: int  # calls that a replay makes
    fused: int  # of the program's, run by kernels that do several
    held: int  # by a kernel bound once
    out: int  # by an out-variant
    boxed: int  # by a boxed call
    shapes: int
    arena: int
    outputs: int
    fixed: int
    capture_seconds: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found."""

    graphs: int
    regions: list[RegionRow]
    breaks: list[Fallback]  # what ran live, with reason, op and line
    dynamo_breaks: list[Fallback]  # where Dynamo split the model, or left a function to Python
    weight_bytes: int
    first_call_seconds: float
    capture_call_seconds: float
    replay_seconds: float  # median
    eager_seconds: float  # median
    replayed_share: float  # of all that ran after the first calls: graphs, live calls, stretches of Python
    notes: dict[str, int]  # what was done otherwise than asked, and is no fall-back
    report: Report

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as text:
            console.print(self._summary())
            console.print(self._regions())
            if self.breaks or self.dynamo_breaks:
                console.print(self._breaks())
        return text.get()

    def _summary(self) -> Table:
        table = Table(title="graph mode", show_header=False)
        table.add_row("graphs", str(self.graphs))
        table.add_row("share of the step that is replayed", f"{self.replayed_share:.0%}")
        table.add_row("first call (trace, lower, warm up)", f"{self.first_call_seconds:.2f} s")
        table.add_row("call that captured", f"{self.capture_call_seconds * 1e3:.1f} ms")
        table.add_row(
            "a replayed call, an eager call", f"{self.replay_seconds * 1e3:.3f} ms, {self.eager_seconds * 1e3:.3f} ms"
        )
        table.add_row("weights (re-bound, not copied)", f"{self.weight_bytes:,} bytes")
        table.add_row("arena, shared by all graphs", f"{self.report.bytes.arena:,} bytes")
        for reason, count in self.notes.items():
            table.add_row("times, and a note", f"{count}: {reason}")
        return table

    def _regions(self) -> Table:
        table = Table(title="regions")
        tiers = ("fused", "held", "out", "boxed")
        for head in ("calls in a replay", *tiers, "shapes", "arena", "outputs", "constants", "capture"):
            table.add_column(head, justify="right")
        for r in self.regions:
            counts = (r.calls, r.fused, r.held, r.out, r.boxed, r.shapes, r.arena, r.outputs, r.fixed)
            table.add_row(*(f"{n:,}" for n in counts), f"{r.capture_seconds * 1e3:.1f} ms")
        return table

    def _breaks(self) -> Table:
        table = Table(title="what ran outside graphs")
        for head in ("calls", "why", "your line", "what to change"):
            table.add_column(head, overflow="fold")
        for f in [*self.breaks, *self.dynamo_breaks]:
            table.add_row(str(f.count), f.reason, f.line or "", cure(f.reason))
        return table


def cure(reason: str) -> str:
    """What to change for a kind of break, if anything."""
    return next((text for mark, text in _CURES if mark in reason), "")


def explain(model: Callable[..., Any], *inputs: Any, options: Options | None = None, **kwargs: Any) -> Explanation:
    """Runs a model in graph mode on the inputs, several times, and says what happened.

    The model runs about ten times: state that it keeps advances.

    Args:
        model: a module or function that `torch.compile` takes.
        *inputs, **kwargs: its arguments.
        options: graphmode's options; those in force by default.
    """
    resolved = resolve(options)
    before = set(ledger.regions())
    dynamo_before = {(f.reason, f.line): f.count for f in dynamo_breaks.found()}
    with _no_gradients():
        eager = _seconds(lambda: model(*inputs, **kwargs))
        compiled = torch.compile(_fresh(model), backend="graphmode", options=vars(resolved))
        times = []
        for _ in range(resolved.capture_after + 1 + _REPLAYS):
            start = time.perf_counter()
            compiled(*inputs, **kwargs)
            times.append(time.perf_counter() - start)
    mine = [r for r in ledger.regions() if r not in before]
    counts = [r.count() for r in mine]
    fallbacks: dict[tuple[str, str | None, str | None], Fallback] = {}
    for c in counts:
        for key, f in c.fallbacks.items():
            fallbacks.setdefault(key, Fallback(f.reason, f.op, f.line)).count += f.count
    calls = [r for r in mine if not r.stretches or r.breaks]
    live = sum(c.live_calls + c.breaks for c in counts)
    replays = sum(c.replays for c in counts)
    splits = [f for f in dynamo_breaks.found() if f.count > dynamo_before.get((f.reason, f.line), 0)]
    outside = live + len(splits) * len(times)
    return Explanation(
        graphs=sum(c.graphs for c in counts),
        regions=[row for r in calls if (row := _row(r)) is not None],
        breaks=sorted(fallbacks.values(), key=lambda f: -f.count),
        dynamo_breaks=splits,
        weight_bytes=_weights(model),
        first_call_seconds=times[0],
        capture_call_seconds=times[resolved.capture_after],
        replay_seconds=sorted(times[-_REPLAYS:])[_REPLAYS // 2],
        eager_seconds=eager,
        replayed_share=replays / (replays + outside) if replays + outside else 0.0,
        notes=dict(sum((Counter(c.notes) for c in counts), Counter())),
        report=report(),
    )


def _row(region: Counted) -> RegionRow | None:
    plans = [g.plan for g in region.graphs.values() if hasattr(g, "plan")]
    if not plans:
        return None
    largest = max(plans, key=lambda p: p.arena_bytes)
    return RegionRow(
        calls=largest.chains + largest.held + largest.out + largest.boxed,
        fused=largest.fused,
        held=largest.held,
        out=largest.out,
        boxed=largest.boxed,
        shapes=len(plans),
        arena=largest.arena_bytes,
        outputs=largest.output_bytes,
        fixed=largest.fixed_bytes,
        capture_seconds=region.counters.capture_seconds,
    )


def _weights(model: Callable[..., Any]) -> int:
    if not isinstance(model, torch.nn.Module):
        return 0
    return sum(t.nbytes for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())


def _seconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPLAYS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


@contextmanager
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _fresh(model: Callable[..., Any]) -> Callable[..., Any]:
    """The same call by a code object of its own: what was compiled before is neither used nor dropped."""

    def explained(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return FunctionType(explained.__code__.replace(), explained.__globals__, None, None, explained.__closure__)
