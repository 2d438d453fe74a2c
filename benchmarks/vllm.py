"""Times vLLM's engine by several peers: `python benchmarks/vllm.py --json FILE`.

Decode steps at several batch sizes and steps that have a prompt in them, all engines alive and taking turns block by
block; starts from nothing to a first token, with caches empty and filled; tokens that the key-value cache holds. Prints
tables and writes JSON rows.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import machine
import tables
from rich.console import Console
from rich.table import Table
from timing import median, p90
from vllm_engine import PARTS, PEERS, Engine, environment
from workers import Worker

HERE = Path(__file__).parent
MEMORY = 4.0  # GiB for each engine
ARGUMENTS = {"max_model_len": 1024, "max_num_seqs": 32}
TOKENS = 48  # decoded by each request of a block
PROMPTS = ((16, 64), (65, 256), (257, 1000))  # tokens of the prompts whose steps are timed, from and to
Timed = dict[str, dict[int, list[float]]]  # ms by peer and batch


def start(peer: str, model: str, folder: Path) -> tuple[Worker, float]:
    """A worker whose engine has given a first token, and the seconds from its process's start to there."""
    since = time.perf_counter()
    target = f"{HERE}/vllm_engine.py:{Engine.__name__}"
    worker = Worker(target, peer, model, MEMORY, ARGUMENTS, **environment(peer, folder))
    worker.call("first_token")
    return worker, time.perf_counter() - since


def starts(peers: Sequence[str], model: str, rounds: int, console: Console) -> dict[str, dict[str, list[float]]]:
    """Seconds to the first token, per peer: cold (no cache of any kind), then warm (the second start on the same)."""
    found: dict[str, dict[str, list[float]]] = {p: {"cold": [], "warm": []} for p in peers}
    for number in range(rounds):
        for peer in rotated(peers, number):
            folder = Path(tempfile.mkdtemp(prefix="graphmode-vllm-"))
            for kind in ("cold", "warm"):
                worker, seconds = start(peer, model, folder)
                worker.close()
                found[peer][kind].append(seconds)
                console.print(f"{peer}: {kind} start {seconds:.1f} s", style="dim")
            shutil.rmtree(folder, ignore_errors=True)
    return found


def steps(
    peers: Sequence[str],
    model: str,
    batches: Sequence[int],
    decoding: Sequence[int],
    blocks: int,
    rounds: int,
    console: Console,
) -> tuple[Timed, dict[tuple[int, int], Timed], dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Medians of blocks, per peer and batch; steps with a prompt, per range of its tokens, peer and batch; parts of a
    step at the first size; each engine's last state."""
    found: Timed = {p: {b: [] for b in batches} for p in peers}
    mixed: dict[tuple[int, int], Timed] = {r: {p: {d: [] for d in decoding} for p in peers} for r in PROMPTS}
    parts: dict[str, list[dict[str, float]]] = {p: [] for p in peers}
    states: dict[str, Any] = {}
    for number in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="graphmode-vllm-"))
        workers = {p: start(p, model, folder / p)[0] for p in peers}
        try:
            for batch in batches:
                for worker in workers.values():  # each size of prefill and decode is captured before it is timed
                    for _ in range(3):
                        worker.call("steps", batch, 8)
                for turn in range(blocks):
                    for peer in rotated(list(workers), number + turn):
                        seconds = workers[peer].call("steps", batch, TOKENS)
                        found[peer][batch].append(median(seconds) * 1000)
                console.print(f"round {number + 1}: batch {batch} done", style="dim")
            for batch in decoding:
                for worker in workers.values():  # what is learnt once, whatever the length
                    worker.call("mixed", batch, [(low + high) // 2 for low, high in PROMPTS])
                for turn in range(blocks):
                    drawn = random.Random(turn + blocks * number)
                    lengths = [drawn.randint(*r) for _ in range(4) for r in PROMPTS]
                    for peer in rotated(list(workers), number + turn):
                        for n, seconds in zip(lengths, workers[peer].call("mixed", batch, lengths), strict=True):
                            mixed[next(r for r in PROMPTS if n <= r[1])][peer][batch].append(seconds * 1000)
                console.print(f"round {number + 1}: prompts beside {batch} done", style="dim")
            for turn in range(3 if batches else 0):
                for peer in rotated(list(workers), number + turn):
                    parts[peer].append(workers[peer].call("parts", batches[0], TOKENS))
            states = {p: w.call("state") for p, w in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
            shutil.rmtree(folder, ignore_errors=True)
    return found, mixed, parts, states


def rotated(items: Sequence[str], by: int) -> list[str]:
    by %= len(items)
    return [*items[by:], *items[:by]]


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios turn by turn: what hits one turn of both hits neither's ratio."""
    return median([a / b for a, b in zip(mine, theirs, strict=True)])


def compared(title: str, heads: Sequence[str], rows: dict[tuple[str, ...], dict[str, list[float]]]) -> Table:
    """A table of medians and p90 by peer, and of graphmode's ratios."""
    table = Table(title=title, title_justify="left", title_style="bold")
    peers = list(next(iter(rows.values())))
    others = [p for p in ("eager", "default") if p in peers and "graphmode" in peers]
    for head in (*heads, *peers, *(f"graphmode / {p}" for p in others)):
        table.add_column(head, justify="right")
    for names, by_peer in rows.items():
        cells = [f"{median(by_peer[p]):.2f} ({p90(by_peer[p]):.2f})" for p in peers]
        cells += [f"{ratio(by_peer['graphmode'], by_peer[p]):.3f}" for p in others]
        table.add_row(*names, *cells)
    return table


def step_table(found: Timed, batches: Sequence[int]) -> Table:
    rows = {(str(b),): {p: found[p][b] for p in found} for b in batches}
    return compared("decode step, ms: median of blocks (p90)", ["batch"], rows)


def mixed_table(found: dict[tuple[int, int], Timed], decoding: Sequence[int]) -> Table:
    rows = {
        (str(d), f"{low} to {high}"): {p: timed[p][d] for p in timed}
        for d in decoding
        for (low, high), timed in found.items()
    }
    title = "step with a prompt of a random length in it, ms: median (p90)"
    return compared(title, ["requests that decode", "tokens of the prompt"], rows)


def part_table(found: dict[str, list[dict[str, float]]], batch: int) -> Table:
    title = f"where a step goes at batch {batch}, ms: medians, with the clocks' own time"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for peer in found:
        table.add_column(peer, justify="right")
    for part in ("step", *PARTS):
        table.add_row(part, *(f"{median([row[part] for row in rows]):.2f}" for rows in found.values()))
    rest = [[row["step"] - sum(row[part] for part in PARTS) for row in rows] for rows in found.values()]
    table.add_row("the rest, vLLM's Python", *(f"{median(rows):.2f}" for rows in rest))
    return table


def start_table(found: dict[str, dict[str, list[float]]], states: dict[str, Any]) -> Table:
    table = Table(title="from nothing to the first token", title_justify="left", title_style="bold")
    for head in ("", "cold, s", "warm, s", "key-value cache, tokens", "RSS at the end, MB", "graphs, their MB"):
        table.add_column(head, justify="right")
    for peer in found or states:
        row = found.get(peer, {"cold": [], "warm": []})
        state = states.get(peer, {})
        ours = state.get("graphmode")
        table.add_row(
            peer,
            *(f"{median(row[k]):.1f}" if row[k] else "-" for k in ("cold", "warm")),
            f"{state['kv_tokens']:,}" if state else "-",
            f"{state['rss_mb']:,.0f}" if state else "-",
            f"{ours['graphs']}, {ours['bytes'] / 2**20:.1f}" if ours else "-",
        )
    return table


@click.command(context_settings={"show_default": True})
@click.option("--peers", default="eager,default,empty,graphmode", help=f"comma-separated, of: {', '.join(PEERS)}")
@click.option("--batches", default="1,2,4,8,16", help="comma-separated batch sizes of decode steps; empty: none")
@click.option("--mixed", default="", help="requests that decode beside a prompt, comma-separated; empty: none")
@click.option("--model", type=click.Path(exists=True), help="a model's folder; default: SmolLM2-135M-Instruct in bf16")
@click.option("--rounds", default=2, help="fresh engines per peer")
@click.option("--blocks", default=8, help=f"timed blocks per batch size and round, of {TOKENS} steps each")
@click.option("--starts", "start_rounds", default=2, help="cold and warm starts per peer; 0: none")
@click.option("--json", "file", type=click.Path(path_type=Path), help="file to write the rows to")
def main(
    peers: str,
    batches: str,
    mixed: str,
    model: str | None,
    rounds: int,
    blocks: int,
    start_rounds: int,
    file: Path | None,
) -> None:
    """Times vLLM's engine by several peers."""
    chosen = [p.strip() for p in peers.split(",")]
    if unknown := [p for p in chosen if p not in PEERS]:
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(PEERS)}")
    sizes, decoding = ([int(n) for n in given.split(",") if n.strip()] for given in (batches, mixed))
    console = tables.console()
    head = {
        "machine": machine.record(),
        "settings": {"rounds": rounds, "blocks": blocks, "tokens": TOKENS, "gib": MEMORY, **ARGUMENTS},
    }
    console.print(machine.describe(head["machine"]), highlight=False)
    folder = model or smollm2()
    timed, prompts, parts, states = ({}, {}, {}, {})
    if sizes or decoding:
        timed, prompts, parts, states = steps(chosen, folder, sizes, decoding, blocks, rounds, console)
    started = starts(chosen, folder, start_rounds, console) if start_rounds else {}
    if sizes:
        console.print(step_table(timed, sizes))
        console.print(part_table(parts, sizes[0]))
    if decoding:
        console.print(mixed_table(prompts, decoding))
    console.print(start_table(started, states))
    if file:
        rows = [
            {
                "peer": p,
                "step_ms": timed.get(p),
                "prompt_ms": {f"{low} to {high}": by_peer[p] for (low, high), by_peer in prompts.items()},
                "parts_ms": parts.get(p),
                "start_s": started.get(p),
                "state": states.get(p),
            }
            for p in chosen
        ]
        machine.write(file, head, rows)


def smollm2() -> str:
    """The model of the demo, made from its package at the first time."""
    import sys

    sys.path.append(str(HERE.parent / "examples"))
    from generate import checkpoint

    return str(checkpoint())


if __name__ == "__main__":
    main()
