"""Measures overhead: `python benchmarks/overhead.py --json FILE`. ns per op in a chain, and us per call.

One process per peer; all peers load the same case and take turns on it, block by block. Each figure that the
project sets a limit for is printed beside its limit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import machine
import tables
from chains import FIXED, LENGTHS, OPS
from compare import max_abs_err
from peers import PEERS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import median, p90, slope
from workers import Worker, WorkerFailed

HERE = Path(__file__).parent
# From the project's issue 2, "Overhead".
SLOPE_LIMIT = {"stub": 0.10, "out variant": 0.45}
COMPILE_OVER_REPLAY_US = 5.0
BACKEND_OVER_EMPTY_US = 3.0
MLP_OF_EAGER = 0.5
# Inductor needs seconds to minutes to compile a chain, and what it can fuse is all alike in slope.
INDUCTOR_OPS = ("add", "cumsum")
INDUCTOR_LENGTH = 100


@dataclass(frozen=True)
class Verdict:
    """A measured figure beside what was asked of it."""

    what: str
    value: float
    limit: float
    unit: str

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


def measured(peer: str, name: str, inductor_full: bool) -> bool:
    """Whether a peer takes part in a case."""
    op, _, length = name.partition(":")
    if name in FIXED:
        return True
    if peer == "inductor" and not inductor_full:
        return op in INDUCTOR_OPS and int(length) <= INDUCTOR_LENGTH
    return peer != "empty"


class Bench:
    """The peers' workers, and the rows measured so far."""

    def __init__(self, peers: Sequence[str], blocks: int, block_ms: float, console: Console) -> None:
        self.blocks, self.block_ns, self.console = blocks, int(block_ms * 1e6), console
        self.workers = {peer: self.start(peer) for peer in peers}
        self.rows: list[dict[str, Any]] = []

    def start(self, peer: str) -> Worker:
        return Worker(f"{HERE}/case.py:Contestant", peer, self.block_ns)

    def measure(self, name: str, peers: Sequence[str]) -> None:
        """One case by the given peers, in turns; adds a row per peer. A failure is a row with its reason."""
        rows: dict[str, dict[str, Any]] = {peer: {"case": name, "peer": peer} for peer in peers}
        times: dict[str, list[float]] = {peer: [] for peer in peers}
        results: dict[str, Any] = {}
        for turn in ("load", *["block"] * self.blocks, "results"):
            for peer in [peer for peer in peers if "error" not in rows[peer]]:
                worker = self.workers[peer]
                try:
                    if turn == "load":
                        worker.call("load", "chains", name)
                        rows[peer] |= worker.call("first_call")
                    elif turn == "block":
                        times[peer].append(worker.call("block"))
                    else:
                        results[peer] = worker.call("results")
                except WorkerFailed as failure:
                    rows[peer]["error"] = failure.reason
                    self.console.print(f"{name}: {peer} failed\n{failure}", style="red", markup=False)
                    worker.close()
                    self.workers[peer] = self.start(peer)
        for peer in results:
            rows[peer] |= {"us": median(times[peer]), "p90_us": p90(times[peer]), "min_us": min(times[peer])}
            if "eager" in results:
                rows[peer]["max_abs_err"] = max_abs_err(results[peer], results["eager"])
        self.rows += rows.values()

    def us(self, name: str, peer: str) -> float | None:
        return next((row.get("us") for row in self.rows if (row["case"], row["peer"]) == (name, peer)), None)

    def slope_ns(self, op: str, peer: str) -> float | None:
        """Nanoseconds per op: least squares over the lengths that were measured, of which it takes two."""
        points = [(length, us) for length in LENGTHS if (us := self.us(f"{op}:{length}", peer)) is not None]
        return slope(points) * 1000 if len(points) > 1 else None

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def verdicts(bench: Bench, ops: Sequence[str]) -> list[Verdict]:
    """Each figure that has a limit and was measured."""
    found = []
    for op in ops:
        limit = SLOPE_LIMIT.get(OPS[op].kind)
        for peer in ("graphmode", "graphmode.compile"):
            ours, eager = bench.slope_ns(op, peer), bench.slope_ns(op, "eager")
            if limit and ours is not None and eager:
                found.append(Verdict(f"{op} ({OPS[op].kind}): slope by {peer}", ours / eager, limit, "of eager's"))

    def difference(name: str, peer: str, base: str, limit: float) -> None:
        ours, theirs = bench.us(name, peer), bench.us(name, base)
        if ours is not None and theirs is not None:
            found.append(Verdict(f"{name}: {peer} above {base}", ours - theirs, limit, "us"))

    difference("300 parameters", "graphmode.compile", "replay", COMPILE_OVER_REPLAY_US)
    for name in FIXED:
        difference(name, "graphmode", "empty", BACKEND_OVER_EMPTY_US)
    ours, eager = bench.us("mlp", "graphmode.compile"), bench.us("mlp", "eager")
    if ours is not None and eager is not None:
        found.append(Verdict("mlp: graphmode.compile", ours / eager, MLP_OF_EAGER, "of eager's"))
    return found


def table(title: str, rows: dict[str, Sequence[float | None]], peers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for peer in peers:
        table.add_column(peer, justify="right")
    for name, values in rows.items():
        table.add_row(name, *("" if value is None else f"{value:,.2f}" for value in values))
    return table


def verdict_table(found: Sequence[Verdict]) -> Table:
    table = Table(title="against the limits", title_justify="left")
    for name in ("figure", "measured", "limit", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for verdict in found:
        mark = "[green]reached" if verdict.reached else "[yellow]falls short"
        table.add_row(verdict.what, f"{verdict.value:.2f}", f"{verdict.limit:.2f} {verdict.unit}", mark)
    return table


@click.command()
@click.option("--peers", default=",".join(p for p in PEERS if p != "graphmode-max"), help="comma-separated")
@click.option("--ops", default=",".join(OPS), help="comma-separated ops of the chains; empty for none")
@click.option("--json", "file", type=click.Path(path_type=Path), help="file to write the figures to")
@click.option("--blocks", default=15, help="timed blocks per case and peer")
@click.option("--block-ms", default=20.0, help="length of a block")
@click.option("--inductor-full", is_flag=True, help="Inductor on all chains too: many minutes")
@click.option("--quick", is_flag=True, help="three short blocks, four ops: does it run, not how fast")
def main(
    peers: str, ops: str, file: Path | None, blocks: int, block_ms: float, inductor_full: bool, quick: bool
) -> None:
    """ns per op of chains, us per call, and whether the limits are reached."""
    if quick:
        blocks, block_ms, ops = 3, 5.0, "add,where,cumsum,flip"
    chosen = [peer for peer in peers.split(",") if peer]
    chosen_ops = [op for op in ops.split(",") if op]
    for given, known in ((chosen, PEERS), (chosen_ops, OPS)):
        if unknown := [name for name in given if name not in known]:
            raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    console = tables.console()
    settings = {"blocks": blocks, "block_ms": block_ms}
    head: dict[str, Any] = {"machine": machine.record(), "settings": settings}
    console.print(machine.describe(head["machine"]), highlight=False)
    bench = Bench(chosen, blocks, block_ms, console)
    try:
        names = [*FIXED, *(f"{op}:{length}" for op in chosen_ops for length in LENGTHS)]
        for name in track(names, "chains and calls", console=console):
            bench.measure(name, [peer for peer in chosen if measured(peer, name, inductor_full)])
    finally:
        bench.close()

    fixed = {name: [bench.us(name, peer) for peer in chosen] for name in FIXED}
    slopes = {op: [bench.slope_ns(op, peer) for peer in chosen] for op in chosen_ops}
    found = verdicts(bench, chosen_ops)
    console.print(table("us per call", fixed, chosen))
    console.print(table("ns per op in a chain", {f"{op} ({OPS[op].kind})": slopes[op] for op in slopes}, chosen))
    console.print(verdict_table(found))
    if file:
        head["slopes_ns"] = {op: dict(zip(chosen, values, strict=True)) for op, values in slopes.items()}
        head["limits"] = [{**asdict(verdict), "reached": verdict.reached} for verdict in found]
        machine.write(file, head, bench.rows)


if __name__ == "__main__":
    main()
