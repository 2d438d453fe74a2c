"""vllm-ascend's decode steps over the emulated NPU, mode beside mode: engines that live side by side and take turns.

`python benchmarks/ascend/vllm_steps.py --json FILE` in `.venv-vllm-ascend`. First all prompts are answered by each mode
at each batch size, then short blocks in turns say what a step costs the host: the processor time of the thread that
steps the engine, without that of what emulates the device. Engines start several times, since two starts of one differ
by some per cent.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from processes import Process
from rich.console import Console
from rich.table import Table
from vllm_modes import MODES, engine

PEERS = "eager;ACLGraph, whole;graphmode, whole"
TOKENS = 8  # of an answer
STEPS = 16  # in a block

Found = dict[str, Any]


def measured(modes: Sequence[str], model: str, batches: Sequence[int], prompts: int, turns: int) -> dict[str, Found]:
    """By mode: what it said at its start and its end, its answers by batch size, and its blocks by batch size."""
    found: dict[str, Found] = {}
    with contextlib.ExitStack() as stack:
        alive: dict[str, Process] = {mode: stack.enter_context(engine(mode, model)) for mode in modes}
        for mode, process in alive.items():
            found[mode] = {**process.answer(), "answers": {}, "turns": {b: [] for b in batches}}
        for batch in batches:
            for mode, process in alive.items():
                block = process.ask(batch=batch, prompts=prompts, tokens=TOKENS)
                found[mode]["answers"][batch] = block["answers"]
        _take_turns(alive, found, turns)
        for mode, process in alive.items():
            found[mode] |= process.end()
    return found


def measured_again(modes: Sequence[str], model: str, found: dict[str, Found], turns: int) -> None:
    """Further turns of engines that start anew."""
    with contextlib.ExitStack() as stack:
        alive = {mode: stack.enter_context(engine(mode, model)) for mode in modes}
        for process in alive.values():
            process.answer()
        _take_turns(alive, found, turns)


def _take_turns(alive: dict[str, Process], found: dict[str, Found], turns: int) -> None:
    modes = list(alive)
    for turn in range(turns):
        for batch in next(iter(found.values()))["turns"]:
            for mode in modes if turn % 2 == 0 else modes[::-1]:
                block = alive[mode].ask(batch=batch, prompts=batch, tokens=STEPS + 2)
                found[mode]["turns"][batch].append(block["steps"])


def equal(found: Found, first: Found) -> int:
    """How many answers are the first mode's."""
    pairs = [zip(found["answers"][b], first["answers"][b], strict=True) for b in first["answers"]]
    return sum(ours == theirs for answers in pairs for ours, theirs in answers)


def host_ms(found: Found, batch: int) -> float:
    return median(steps["host_us"] for steps in found["turns"][batch]) / 1000


def ratio(found: Found, first: Found, batch: int) -> float:
    """Of the host's time, turn by turn."""
    pairs = zip(found["turns"][batch], first["turns"][batch], strict=True)
    return median(ours["host_us"] / theirs["host_us"] for ours, theirs in pairs)


def table(found: dict[str, Found], peer: str) -> Table:
    """A column a mode."""
    columns = []
    first = next(iter(found.values()))
    for mode in found.values():
        usage = mode["usage"]
        rows = {"answers as the first's": f"{equal(mode, first)} of {sum(map(len, first['answers'].values()))}"}
        rows["calls of the runtime a step"] = f"{median(s['calls'] for b in mode['turns'].values() for s in b):.0f}"
        for batch in mode["turns"]:
            rows[f"host ms a step, batch {batch}"] = f"{host_ms(mode, batch):.1f}"
            rows[f"of {peer}'s, by turn, batch {batch}"] = f"{ratio(mode, found[peer], batch):.3f}"
        rows["graphs; with streams"] = f"{usage['graphs']}; {usage['graph_slots'] + usage['streams']}"
        rows["device MiB that captures took"] = f"{mode['captured']['bytes'] / 2**20:.1f}"
        rows["calls outside graphs"] = str(mode["graphmode"]["live_calls"]) if "graphmode" in mode else ""
        columns.append(rows)
    made = Table("", *found, title="A decode step of vllm-ascend")
    for name in columns[0]:
        made.add_row(name, *(rows[name] for rows in columns))
    return made


@click.command(context_settings={"show_default": True})
@click.option("--modes", default=PEERS, help="the first is compared with; split by ';': " + "; ".join(MODES))
@click.option("--peer", default="ACLGraph, whole", help="whose host time is compared with")
@click.option("--model", default="smollm2", help="smollm2, or a small model of the tests")
@click.option("--batches", default="1,2,3,4,5,6,7,8")
@click.option("--prompts", default=50, help="answered at each batch size")
@click.option("--turns", default=5, help="of each mode at each batch size, in one start")
@click.option("--starts", default=3, help="of each engine; prompts are answered in the first")
@click.option("--json", "path", type=click.Path(path_type=Path), default=None, help="where all of it goes")
def main(
    modes: str, peer: str, model: str, batches: str, prompts: int, turns: int, starts: int, path: Path | None
) -> None:
    """Starts one engine a mode, lets them take turns, and prints the table; 1 where an answer differs."""
    named, sizes = [m.strip() for m in modes.split(";")], [int(b) for b in batches.split(",")]
    found = measured(named, model, sizes, prompts, turns)
    for _ in range(starts - 1):
        measured_again(named, model, found, turns)
    Console(width=None if sys.stdout.isatty() else 120).print(table(found, peer))
    if path is not None:
        path.write_text(json.dumps(found, indent=1))
    first = found[named[0]]
    sys.exit(any(equal(f, first) != equal(first, first) for f in found.values()))


if __name__ == "__main__":
    main()
