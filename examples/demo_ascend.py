"""`make demo-ascend`: vllm-ascend serves SmolLM2 over the emulated NPU in each mode, asked the same, and compared.

Eager, vllm-ascend's own graphs in pieces and whole, and graphmode's, each in a process of its own. No figure says how
fast an NPU is: what counts is which answers are equal, what the host has to do for a step, and what graphs hold.
Exits with 1 when an engine failed or an answer differs.
"""

import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks/ascend"))

from processes import ProcessFailed
from vllm_modes import MODES, found_by

BATCHES = [1, 4]
ASKED: dict[str, Any] = {"model": "smollm2", "batches": BATCHES, "prompts": 8, "tokens": 12}


def names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    chosen = [name.strip() for name in value.split(";")]
    if unknown := [name for name in chosen if name not in MODES]:
        raise click.BadParameter(f"{'; '.join(unknown)}: not one of {'; '.join(MODES)}")
    return chosen


def table(results: dict[str, dict[str, Any]]) -> Table:
    """One column a mode."""
    made = Table(
        title="SmolLM2-135M in vllm-ascend, emulated NPU; runtime calls and host ms of a step",
        title_justify="left",
        title_style="bold",
    )
    made.add_column("", no_wrap=True)
    for mode in results:
        made.add_column(mode.replace(", ", ",\n"), justify="right")
    columns = [column(found, results.get("eager")) for found in results.values()]
    for name in columns[0]:
        made.add_row(name, *(c[name] for c in columns))
    return made


def column(found: dict[str, Any], eager: dict[str, Any] | None) -> dict[str, str]:
    usage, captured = found["usage"], found["captured"]
    rows = {"as eager answers": "-" if eager is None else f"{equal(found, eager)}/{count(found)}"}
    for batch, steps in found["steps"].items():
        rows[f"calls, batch {batch}"] = f"{steps['calls']:.0f}"
        rows[f"host ms, batch {batch}"] = f"{steps['host_us'] / 1000:.1f}"
    rows["graphs"] = f"{usage['graphs']}"
    rows["streams and graphs"] = f"{usage['graph_slots'] + usage['streams']}"
    rows["captures, s"] = f"{captured['seconds']:.1f}" if usage["captures"] else "-"
    rows["captures, MiB"] = f"{captured['bytes'] / 2**20:.1f}" if usage["captures"] else "-"
    rows["start, s"] = f"{found['start_s']:.0f}"
    return rows


def equal(found: dict[str, Any], eager: dict[str, Any]) -> int:
    pairs = [zip(found["answers"][b], eager["answers"][b], strict=True) for b in found["answers"]]
    return sum(ours == theirs for answers in pairs for ours, theirs in answers)


def count(found: dict[str, Any]) -> int:
    return sum(len(answers) for answers in found["answers"].values())


@click.command(context_settings={"show_default": True})
@click.option("--modes", default=";".join(MODES), callback=names, help="in the order of their turns, split by ';'")
def main(modes: list[str]) -> None:
    """Runs vllm-ascend in several modes and compares them."""
    console = Console()
    start, results, failed = time.monotonic(), {}, False
    for mode in modes:
        with console.status(f"{mode}: an engine starts, answers {ASKED['prompts']} prompts at each of two batch sizes"):
            try:
                results[mode] = found_by(mode, **ASKED)
            except ProcessFailed as failure:
                failed = True
                console.print(f"{mode}: {failure}", style="red", highlight=False, markup=False)
                continue
        console.print(f"{mode}: done", style="dim")
    if results:
        console.print(table(results))
    for mode, found in results.items():
        for reason, times in found.get("graphmode", {}).get("fallbacks", {}).items():
            console.print(f"{mode}: outside graphs, {times} times: {reason}", highlight=False)
    console.print(f"{time.monotonic() - start:.0f} s in all", highlight=False)
    eager = results.get("eager")
    differs = eager is not None and any(equal(found, eager) != count(found) for found in results.values())
    sys.exit(1 if failed or differs else 0)


if __name__ == "__main__":
    main()
