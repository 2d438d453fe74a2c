"""The Ascend benchmark: `python benchmarks/ascend/run.py --json FILE`, over the emulated NPU of `make install-ascend`.

Each row in a process of its own: behaviour (behaviour.py) and steps of models (steps.py), by graphmode and torch_npu's
own backends. Says nothing of a device's speed: host time, launches, tasks and memory are what an emulation can tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from processes import Process, ProcessFailed
from rich.console import Console
from rich.table import Table

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
os.environ[_AUTOLOAD] = "0"  # this process has no NPU: only its rows run over the emulation
from behaviour import ROWS, SETTINGS  # noqa: E402
from nets import CASES  # noqa: E402

HERE = Path(__file__).parent
BACKENDS = ("graphmode", "npugraph_ex", "npugraphs")
MORE = ("eager", "graphmode.compile")  # of steps alone
TURNS = 9
LIMIT_S = 1800


def started(script: str, name: str, backend: str) -> Process:
    command = [sys.executable, "-W", "ignore", str(HERE / script), name, backend]
    return Process(command, {_AUTOLOAD: None, **SETTINGS.get(name, {})}, LIMIT_S)


def ended(name: str, backend: str, why: ProcessFailed) -> dict[str, Any]:
    lines = str(why).strip().splitlines() or [""]
    last = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
    return {"row": name, "backend": backend, "came": "ended", "note": last[:120]}


def behaviour(name: str, backend: str) -> dict[str, Any]:
    """A row of behaviour.py, or how its process ended."""
    with started("behaviour.py", name, backend) as process:
        try:
            return process.answer()
        except ProcessFailed as why:
            return ended(name, backend, why)


def steps(model: str, backends: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of steps.py, one process a backend; they live side by side and take turns, in changing order."""
    rows, alive = [], []
    with contextlib.ExitStack() as stack:
        for backend in backends:
            process = stack.enter_context(started("steps.py", model, backend))
            try:
                row = process.answer() | {"turns": []}
                alive.append((process, row))
            except ProcessFailed as why:
                row = ended(model, backend, why)
            rows.append(row)
        for turn in range(TURNS):
            for process, row in list(alive if turn % 2 == 0 else alive[::-1]):
                try:
                    row["turns"].append(process.ask())
                except ProcessFailed as why:
                    row |= ended(model, row["backend"], why)
                    alive.remove((process, row))
    for _, row in alive:
        for what in ("host_us", "bare_us"):
            row[what] = median(turn[what] for turn in row["turns"])
    return rows


def behaviour_table(rows: Sequence[dict[str, Any]], backends: Sequence[str]) -> Table:
    table = Table("", *backends, title="Behaviour, against eager on the same device")
    for name in ROWS:
        found = {r["backend"]: f"{r['came']}: {r['note']}" for r in rows if r.get("row") == name}
        table.add_row(name, *(found.get(b, "") for b in backends))
    return table


def steps_table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = ("model", "backend", "right", "host us", "above bare", "calls", "launches", "kernels", "tasks", "MiB")
    table = Table(*heads, title="A step: host time above the bare replay, calls of the runtime, reserved memory")
    for r in rows:
        if "host_us" not in r:
            table.add_row(str(r["row"]), r["backend"], f"{r['came']}: {r['note']}")
            continue
        above = r["host_us"] - r["bare_us"]
        numbers = (f"{r['host_us']:.0f}", f"{above:.0f}", r["runtime_calls"], r["launches"], r["kernels"], r["tasks"])
        table.add_row(
            r["model"], r["backend"], f"{r['right']} of {r['of']}", *map(str, numbers), str(r["reserved_mib"])
        )
    return table


@click.command()
@click.option("--only", type=click.Choice(["behaviour", "steps"]), default=None, help="One of the two.")
@click.option("--backends", default=",".join(BACKENDS), show_default=True)
@click.option("--models", default=",".join(CASES), show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), default=None, help="Where the rows go.")
def main(only: str | None, backends: str, models: str, path: Path | None) -> None:
    """Runs the rows and prints the tables."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    named = backends.split(",")
    rows: list[dict[str, Any]] = []
    if only != "steps":
        rows = [behaviour(name, b) for name in ROWS for b in named]
        console.print(behaviour_table(rows, named))
    if only != "behaviour":
        found = [row for m in models.split(",") for row in steps(m, (*named, *MORE))]
        console.print(steps_table(found))
        rows += found
    if path is not None:
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
