"""`make demo`: embeds sentences and generates text in eager, Inductor and graphmode, and compares the three.

`python examples/demo.py eager graphmode` leaves the others out. Exits with 1 when graphmode replayed nothing
or gave other bits than eager.
"""

import sys
import time
from typing import Any

from race import Race
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from machine import describe, record  # isort: skip  (race.py adds their folder to the path)
from timing import median, p90  # isort: skip

PEERS = ["eager", "inductor", "graphmode"]
JOBS = {
    "Embedding": ("sentence", "MiniLM-L6, fp32: one sentence a call, 32 tokens"),
    "Generation": ("token", "SmolLM2-135M, bf16: one token a call, static KV cache"),
}


def table(race: Race) -> Table:
    unit, title = JOBS[race.job]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for peer in race.peers:
        table.add_column(peer, justify="right")
    names = [f"ms per {unit}, median", f"ms per {unit}, p90", f"{unit}s/s", "GB/s of weights"]
    names += ["first call, s", "next two calls, s", "memory held by graphs", "graphs / replays / breaks"]
    names += ["calls identical to eager's", "answers equal eager's"]
    for row in zip(names, *(figures(race, peer) for peer in race.peers), strict=True):
        table.add_row(*row)
    return table


def figures(race: Race, peer: str) -> list[str]:
    """A peer's column, from top to bottom."""
    if peer in race.failures:
        return ["[red]failed", *[""] * 9]
    seconds, first, summary = race.seconds[peer], race.first[peer], race.summary[peer]
    held, counts, same, equal = "-", "-", "-", "-"
    if counters := summary["counters"]:
        held = f"{counters['bytes'] / 2**20:.2f} MB"
        counts = " / ".join(str(counters[name]) for name in ("graphs", "replays", "breaks"))
    if peer != "eager" and "eager" in race.numbers:
        same = "{} of {}".format(*race.calls_like_eager(peer))
        equal = "yes" if race.answers[peer] == race.answers["eager"] else "no"
    return [
        f"{median(seconds) * 1000:.2f}",
        f"{p90(seconds) * 1000:.2f}",
        f"{1 / median(seconds):.1f}",
        f"{summary['weight_bytes'] / median(seconds) / 1e9:.1f}",
        f"{first[0]:.2f}",
        f"{sum(first[1:]):.2f}",
        held,
        counts,
        same,
        equal,
    ]


def show(race: Race, console: Console) -> None:
    """What was answered, the table, and what graphmode ran outside a graph."""
    peer = "graphmode" if "graphmode" in race.answers else "eager"
    console.print(f"\n[bold]{peer} answered[/bold]")
    console.print("\n".join(race.answers.get(peer, [])), highlight=False, markup=False)
    console.print(table(race))
    for fallback in counters(race).get("fallbacks", []):
        console.print(f"outside a graph: {fallback}", style="yellow", highlight=False, markup=False)


def counters(race: Race) -> dict[str, Any]:
    return race.summary.get("graphmode", {}).get("counters") or {}


def main() -> int:
    console = Console()
    start = time.monotonic()
    console.print(f"graphmode demo on {describe(record())}", highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        races = [Race(job, sys.argv[1:] or PEERS, progress) for job in JOBS]
        for race in races:
            race.run()
    for race in races:
        show(race, console)
    console.print(f"\n{time.monotonic() - start:.0f} s in all", highlight=False)
    proved = [counters(race).get("replays", 0) > 0 and race.identical("graphmode") for race in races]
    return 0 if all(proved) else 1


if __name__ == "__main__":
    sys.exit(main())
