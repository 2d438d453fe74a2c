"""`report()`: what ran in this process, as data first; the table is made from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from graphmode import _C
from graphmode.devices.adapter import pool_bytes
from graphmode.inspect.counters import Counters, Fallback, ledger
from graphmode.inspect.dynamo import dynamo_breaks


@dataclass(frozen=True)
class Bytes:
    """Memory of graphs, in bytes."""

    arena: int  # what the intermediates of all graphs share: the CPU's arena, and the pool of each other device
    fixed: int  # constants held by graphs
    outputs: int  # handed out fresh by each replay, summed over graphs: the caller's once returned
    weights: int = 0  # parameters and inputs are re-bound, never copied

    @property
    def total(self) -> int:
        """What graphs hold between calls."""
        return self.arena + self.fixed + self.weights


@dataclass(frozen=True)
class Report:
    """Counts over all compiled regions of this process."""

    graphs: int
    captures: int
    replays: int
    breaks: int
    live_calls: int
    warmups: int
    evictions: int
    updates: int  # replays whose captured calls were given other integers first
    capture_seconds: float
    lower_seconds: float
    fused: dict[str, int]  # groups of calls that became one of the device's, by kind
    notes: dict[str, int]  # what was done otherwise than asked, and is no fall-back
    fallbacks: list[Fallback]
    bytes: Bytes

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as text:
            console.print(self.table())
            if self.fallbacks:
                console.print(self.fallback_table())
        return text.get()

    def table(self) -> Table:
        """The counts as a table."""
        table = Table(title="graphmode", show_header=False)
        table.add_row("graphs", f"{self.graphs:,}")
        table.add_row("captures, evictions", f"{self.captures:,}, {self.evictions:,}")
        table.add_row("replays", f"{self.replays:,}")
        if self.updates:
            table.add_row("replays with other lengths than before", f"{self.updates:,}")
        table.add_row("warm-up calls", f"{self.warmups:,}")
        table.add_row("live calls", f"{self.live_calls:,}")
        table.add_row("breaks run", f"{self.breaks:,}")
        table.add_row("bytes held: arena, constants", f"{self.bytes.arena:,}, {self.bytes.fixed:,}")
        table.add_row("seconds: lowering, capture", f"{self.lower_seconds:.2f}, {self.capture_seconds:.2f}")
        for kind, count in self.fused.items():
            table.add_row("fused", f"{count}: {kind}")
        for reason, count in self.notes.items():
            table.add_row("times, and a note", f"{count}: {reason}")
        return table

    def fallback_table(self) -> Table:
        """What ran outside a graph, why, and where."""
        table = Table(title="outside graphs")
        for head in ("calls", "reason", "your line"):
            table.add_column(head, overflow="fold")
        for f in sorted(self.fallbacks, key=lambda f: -f.count):
            table.add_row(str(f.count), f.reason, f.line or "")
        return table


def summarise(counters: Iterable[Counters], bytes_held: Bytes) -> Report:
    """One report from several counters."""
    total = Counters()
    for c in counters:
        total.add(c)
    return Report(
        graphs=total.graphs,
        captures=total.captures,
        replays=total.replays,
        breaks=total.breaks,
        live_calls=total.live_calls,
        warmups=total.warmups,
        evictions=total.evictions,
        updates=total.updates,
        capture_seconds=total.capture_seconds,
        lower_seconds=total.lower_seconds,
        fused=dict(total.fused),
        notes=total.notes,
        fallbacks=[*total.fallbacks.values(), *dynamo_breaks.found()],
        bytes=bytes_held,
    )


def report() -> Report:
    """What ran in this process since its start or the last `reset()`."""
    regions = ledger.regions()
    graphs = [b for r in regions for b in r.bytes()]
    held = Bytes(arena=pool_bytes(), fixed=sum(g.fixed for g in graphs), outputs=sum(g.outputs for g in graphs))
    return summarise([ledger.gone, *(r.count() for r in regions)], held)


def reset() -> None:
    """Drops every graph and its memory, and zeroes the counters. Compiled functions go on and capture anew."""
    for region in ledger.regions():
        region.clear()
    _C.forget_proofs()
    ledger.clear()
    dynamo_breaks.forget()
