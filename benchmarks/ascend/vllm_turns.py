"""What vllm-ascend's decode steps cost the host, in modes that take turns: engines that live side by side.

`python benchmarks/ascend/vllm_turns.py` in `.venv-vllm-ascend`. Time is the processor time of the thread that steps the
engine, so that what emulates the device is not counted; medians, and the median of the ratios turn by turn.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from vllm_modes import MODES, engine

PEERS = "ACLGraph, whole;graphmode, whole"
TOKENS = 20  # of an answer; the first two steps and the last are not counted


def ratio(blocks: list[dict[str, Any]], of: list[dict[str, Any]], what: str) -> float:
    return median(ours["steps"][what] / theirs["steps"][what] for ours, theirs in zip(blocks, of, strict=True))


def table(found: dict[str, dict[int, list[dict[str, Any]]]]) -> Table:
    """A row a mode and batch size; ratios are of the first mode's."""
    made = Table("mode", "batch", "host us a step", "of the first", "calls a step", title="A decode step, host")
    first = next(iter(found.values()))
    for mode, batches in found.items():
        for batch, blocks in batches.items():
            host = median(b["steps"]["host_us"] for b in blocks)
            calls = median(b["steps"]["calls"] for b in blocks)
            made.add_row(
                mode, str(batch), f"{host:,.0f}", f"{ratio(blocks, first[batch], 'host_us'):.3f}", f"{calls:.0f}"
            )
    return made


@click.command(context_settings={"show_default": True})
@click.option("--modes", default=PEERS, help="split by ';': " + "; ".join(MODES))
@click.option("--model", default="smollm2")
@click.option("--batches", default="1,2,4,8")
@click.option("--turns", default=9, help="of each mode at each batch size")
@click.option("--json", "path", type=click.Path(path_type=Path), default=None, help="where all turns go")
def main(modes: str, model: str, batches: str, turns: int, path: Path | None) -> None:
    """Starts one engine a mode, lets them take turns, and prints the table."""
    console = Console()
    named, sizes = [m.strip() for m in modes.split(";")], [int(b) for b in batches.split(",")]
    found: dict[str, dict[int, list[dict[str, Any]]]] = {m: {b: [] for b in sizes} for m in named}
    with contextlib.ExitStack() as stack:
        engines = {m: stack.enter_context(engine(m, model)) for m in named}
        for started in engines.values():
            started.answer()
        for turn in range(turns):
            order = named if turn % 2 == 0 else named[::-1]
            for batch in sizes:
                for mode in order:
                    found[mode][batch].append(engines[mode].ask(batch=batch, prompts=batch, tokens=TOKENS))
        for mode, asked in engines.items():
            graphs = asked.end().get("graphmode")
            if graphs:
                console.print(f"{mode}: {graphs['graphs']} graphs, {graphs['live_calls']} calls outside them")
    console.print(table(found))
    same = all(
        ours["answers"] == theirs["answers"]
        for mode in named[1:]
        for b in sizes
        for ours, theirs in zip(found[mode][b], found[named[0]][b], strict=True)
    )
    console.print(f"answers {'equal' if same else 'DIFFER'}")
    if path is not None:
        path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
