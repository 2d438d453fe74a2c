"""Times real models: `python benchmarks/models.py --suite public --peers eager,inductor --json FILE`.

Each peer gets a fresh process per model and round; the processes take turns block by block, so that noise of
the machine hits all alike. Prints a table and writes JSON rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import machine
import tables
from compare import max_abs_err
from peers import PEERS
from rich.console import Console
from rich.table import Table
from suite import SUITES
from timing import median, p90
from workers import Worker, WorkerFailed

HERE = Path(__file__).parent
SLOWER_THAN_EAGER = 1.02


class Contest:
    """One case and its peers, over all rounds."""

    def __init__(self, name: str, peers: Sequence[str], console: Console, block_ms: float) -> None:
        self.name, self.peers, self.console, self.block_ms = name, peers, console, block_ms
        self.rows: dict[str, dict[str, Any]] = {peer: {"peer": peer} for peer in peers}
        self.blocks: dict[str, list[float]] = {peer: [] for peer in peers}
        self.firsts: dict[str, list[dict[str, float]]] = {peer: [] for peer in peers}
        self.results: dict[str, Any] = {}

    def round(self, number: int, blocks: int) -> None:
        """Fresh workers, `blocks` turns each, then what they computed. Leaves out a peer that failed."""
        order = [peer for peer in rotated(self.peers, number) if "error" not in self.rows[peer]]
        workers: dict[str, Worker] = {}
        try:
            for peer in order:
                self.attempt(workers, peer, self.start)
            for turn in range(blocks):
                for peer in rotated(list(workers), turn):
                    self.attempt(workers, peer, self.block)
            for peer in list(workers):
                self.attempt(workers, peer, self.finish)
        finally:
            for worker in workers.values():
                worker.close()

    def attempt(self, workers: dict[str, Worker], peer: str, action: Any) -> None:
        try:
            action(workers, peer)
        except WorkerFailed as failure:
            self.rows[peer]["error"] = failure.reason
            self.console.print(f"{self.name}: {peer} failed\n{failure}", style="red", markup=False)
            if peer in workers:
                workers.pop(peer).close()

    def start(self, workers: dict[str, Worker], peer: str) -> None:
        workers[peer] = Worker(f"{HERE}/case.py:Contestant", peer, int(self.block_ms * 1e6))
        self.rows[peer] |= workers[peer].call("load", "suite", self.name)
        first = workers[peer].call("first_call")
        self.firsts[peer].append(first)
        self.console.print(f"{self.name}: {peer} first call {first['first_call_s']:.2f} s", style="dim")

    def block(self, workers: dict[str, Worker], peer: str) -> None:
        self.blocks[peer].append(workers[peer].call("block"))

    def finish(self, workers: dict[str, Worker], peer: str) -> None:
        """Memory is read before the results are asked for, which allocate on their own account."""
        totals = workers[peer].call("totals")
        totals["peak_mb"] = max(totals["peak_mb"], self.rows[peer].get("peak_mb", 0))
        self.results[peer] = workers[peer].call("results")
        self.rows[peer] |= totals | workers[peer].call("state_writes")

    def finished_rows(self) -> list[dict[str, Any]]:
        """One row per peer: the issue's columns first, then what explains them."""
        known = next((row for row in self.rows.values() if "model" in row), {"model": self.name})
        return [{**known_columns(known), **self.columns(peer), **self.rows[peer]} for peer in self.peers]

    def columns(self, peer: str) -> dict[str, Any]:
        if "error" in self.rows[peer]:
            return {}
        err = max_abs_err(self.results[peer], self.results["eager"]) if "eager" in self.results else None
        return {
            "us": median(self.blocks[peer]),
            "p90_us": p90(self.blocks[peer]),
            "min_us": min(self.blocks[peer]),
            "first_call_s": median([first["first_call_s"] for first in self.firsts[peer]]),
            "ready_s": median([first["ready_s"] for first in self.firsts[peer]]),
            "max_abs_err": err,
            "blocks": len(self.blocks[peer]),
        }


def known_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("model", "dtype", "batch")}


def rotated(items: Sequence[str], by: int) -> list[str]:
    """So that no peer always follows the same one."""
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="median and p90 over blocks; x: eager's time over this peer's", title_justify="left")
    for name in ("model", "dtype", "peer"):
        table.add_column(name)
    for name in (
        "us",
        "p90 us",
        "x",
        "first call s",
        "ready s",
        "peak MB",
        "max abs err",
        "KV bytes written",
    ):
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        head = [row["model"], row["dtype"] or "", row["peer"]]
        section = index + 1 == len(rows) or rows[index + 1]["model"] != row["model"]
        if "error" in row:
            table.add_row(*head, f"[red]failed: {row['error'][:60]}", end_section=section)
            continue
        against = eager_us(rows, row)
        table.add_row(
            *head,
            f"{row['us']:,.1f}",
            f"{row['p90_us']:,.1f}",
            f"{against / row['us']:.2f}" if against else "",
            f"{row['first_call_s']:.2f}",
            f"{row['ready_s']:.2f}",
            f"{row['peak_mb']:.0f}",
            "" if row["max_abs_err"] is None else f"{row['max_abs_err']:.1e}",
            state_text(row),
            end_section=section,
        )
    return table


def state_text(row: dict[str, Any]) -> str:
    if not row["state_bytes"]:
        return ""
    written = row["state_bytes_written"]
    text = "unknown" if written is None else f"{written:,} of {row['state_bytes']:,}"
    return text + (" [red]moved" if row["state_moved"] else "")


def eager_us(rows: list[dict[str, Any]], row: dict[str, Any]) -> float | None:
    same = (r for r in rows if r["peer"] == "eager" and known_columns(r) == known_columns(row))
    return next((r["us"] for r in same if "us" in r), None)


def shortfalls(rows: list[dict[str, Any]]) -> list[str]:
    """Where graphmode misses what is asked of it: speed, eager's bits, a KV cache left in place, replays."""
    found = []
    for row in rows:
        if not row["peer"].startswith("graphmode"):
            continue
        name = f"{row['model']} {row['dtype']}, {row['peer']}"
        if "error" in row:
            found.append(f"{name}: {row['error']}")
            continue
        against = eager_us(rows, row)
        if against and row["us"] > SLOWER_THAN_EAGER * against:
            found.append(f"{name}: {row['us'] / against:.2f} of eager's time")
        if row["max_abs_err"] and row["peer"] != "graphmode-max":
            found.append(f"{name}: differs from eager by {row['max_abs_err']:.1e}")
        if row["state_moved"] or (row["state_bytes_written"] or 0) > row["state_bytes"] / 2:
            found.append(f"{name}: KV cache {state_text(row)}")
        if row["recompiles"]:
            found.append(f"{name}: {row['recompiles']} recompiles after the third call")
        if not row["counters"]["replays"]:
            found.append(f"{name}: nothing was replayed; {row['counters']['fallbacks'][:2]}")
    return found


@click.command()
@click.option("--suite", "suite_name", type=click.Choice(list(SUITES)), default="public")
@click.option(
    "--peers", default="eager,inductor,graphmode,graphmode.compile", help=f"comma-separated, of: {', '.join(PEERS)}"
)
@click.option("--only", default="", help="comma-separated names of cases; default: the whole suite")
@click.option("--json", "file", type=click.Path(path_type=Path), help="file to write the rows to")
@click.option("--rounds", default=2, help="fresh processes per peer and model")
@click.option("--blocks", default=25, help="timed blocks per round")
@click.option("--block-ms", default=30.0, help="length of a block")
@click.option("--quick", is_flag=True, help="one round of five short blocks: does it run, not how fast")
def main(
    suite_name: str,
    peers: str,
    only: str,
    file: Path | None,
    rounds: int,
    blocks: int,
    block_ms: float,
    quick: bool,
) -> None:
    """Times the models of a suite by several peers."""
    chosen = [peer.strip() for peer in peers.split(",")]
    names = [name.strip() for name in only.split(",") if name.strip()] or list(SUITES[suite_name])
    for given, known in ((chosen, PEERS), (names, SUITES[suite_name])):
        if unknown := [name for name in given if name not in known]:
            raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    if quick:
        rounds, blocks, block_ms = 1, 5, 5.0
    console = tables.console()
    head = {
        "machine": machine.record(),
        "settings": {"rounds": rounds, "blocks": blocks, "block_ms": block_ms},
    }
    console.print(machine.describe(head["machine"]), highlight=False)
    rows: list[dict[str, Any]] = []
    for name in names:
        contest = Contest(name, chosen, console, block_ms)
        with console.status(f"{name}: {', '.join(chosen)}"):
            for number in range(rounds):
                contest.round(number, blocks)
        rows += contest.finished_rows()
        if file:
            machine.write(file, head, rows)
    console.print(table(rows))
    for text in shortfalls(rows):
        console.print(f"falls short: {text}", style="yellow", markup=False, highlight=False)


if __name__ == "__main__":
    main()
