"""Serving under mixed arrivals, by vLLM's own `bench serve`: `python benchmarks/vllm_serve.py --json FILE`.

The servers of all peers are alive and take turns, one loaded at a time: random lengths and lengths as in ShareGPT,
Poisson arrivals at a share of what the slowest peer can bear, and a burst. Prints tables and writes JSON rows.
"""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import machine
import tables
from rich.console import Console
from rich.table import Table
from timing import median
from vllm import ratio, rotated, smollm2  # the vllm.py beside this file, not the package
from vllm_client import Client, write_conversations
from vllm_server import SERVED, Server, serving
from workers import Worker

HERE = Path(__file__).parent
PEERS = ("eager", "default", "graphmode")
CONVERSATIONS = HERE.parent / "build" / "conversations.json"
DATA = {
    "random": ("--random-input-len", "128", "--random-output-len", "64", "--random-range-ratio", "0.9"),
    "sharegpt": ("--dataset-path", str(CONVERSATIONS)),
}
ARRIVALS = ("poisson", "burst")
CONCURRENCY = 8  # of a burst
LIMITS = ("--max-model-len", "2048", "--max-num-seqs", "32")
FIGURES = {  # of `bench serve`: how it is headed
    "mean_ttft_ms": "TTFT mean, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_itl_ms": "ITL median, ms",
    "p99_itl_ms": "ITL p99, ms",
    "output_throughput": "output tokens/s",
}
STEPS = ("replays_total", "captures_total", "warmups_total", "live_calls_total")
COUNTS = (*STEPS, "evictions_total", "capture_seconds_total")
Runs = dict[tuple[str, str], dict[str, list[dict[str, float]]]]  # by data and arrivals, then peer: one a round


class Turns:
    """Runs of `bench serve` against one server at a time."""

    def __init__(self, client: Worker, servers: dict[str, Server], model: str, requests: int) -> None:
        self.client, self.servers, self.model, self.requests = client, servers, model, requests

    def run(self, peer: str, data: str, seed: int, rate: float | None) -> dict[str, float]:
        """The figures of one run, with what graphmode counted meanwhile; a burst where `rate` is None."""
        server = self.servers[peer]
        before = counted(server)
        arguments = ["--base-url", server.url, "--model", self.model, "--served-model-name", SERVED]
        arguments += ["--dataset-name", data, *DATA[data], "--num-prompts", str(self.requests), "--seed", str(seed)]
        arguments += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--percentile-metrics", "ttft,itl"]
        arguments += ["--max-concurrency", str(CONCURRENCY)] if rate is None else ["--request-rate", f"{rate:.3f}"]
        found = self.client.call("run", *arguments)
        figures = {name: found[name] for name in (*FIGURES, "request_throughput")}
        after = counted(server)
        return figures | {name: after[name] - before[name] for name in after}


def counted(server: Server) -> dict[str, float]:
    if server.peer != "graphmode":
        return {}
    time.sleep(1.5)  # a worker writes its counts once a second
    found = server.graphmode()
    return {name: found[name] for name in COUNTS}


def measure(
    turns: Turns, data: Sequence[str], rounds: int, load: float, console: Console
) -> tuple[Runs, dict[str, float], Runs]:
    """The runs, the rate of arrivals by data, and each server's first burst, which warms it up and sets that rate."""
    peers = list(turns.servers)
    first: Runs = {(d, "burst"): {p: [turns.run(p, d, 1, None)] for p in peers} for d in data}
    rates = {d: load * min(first[d, "burst"][p][0]["request_throughput"] for p in peers) for d in data}
    found: Runs = {(d, a): {p: [] for p in peers} for d in data for a in ARRIVALS}
    for number in range(rounds):
        for turn, (d, arrivals) in enumerate(found):
            seed = 100 + number * len(found) + turn  # other prompts each time: none is in a server's prefix cache
            for peer in rotated(peers, number + turn):
                rate = rates[d] if arrivals == "poisson" else None
                found[d, arrivals][peer].append(turns.run(peer, d, seed, rate))
        console.print(f"round {number + 1} done", style="dim")
    return found, rates, first


def figure_table(runs: Runs, rates: dict[str, float]) -> Table:
    table = Table(title="medians over rounds", title_justify="left", title_style="bold")
    for head in ("data", "arrivals", "peer"):
        table.add_column(head)
    for head in FIGURES.values():
        table.add_column(head, justify="right")
    for (data, arrivals), by_peer in runs.items():
        how = f"{rates[data]:.2f}/s" if arrivals == "poisson" else f"burst, {CONCURRENCY} at once"
        for peer, rows in by_peer.items():
            table.add_row(data, how, peer, *(f"{median([r[f] for r in rows]):.1f}" for f in FIGURES))
        for other in ("default", "eager"):
            if other in by_peer and "graphmode" in by_peer:
                cells = [ratio([r[f] for r in by_peer["graphmode"]], [r[f] for r in by_peer[other]]) for f in FIGURES]
                table.add_row("", "", f"graphmode / {other}", *(f"{c:.3f}" for c in cells), style="bold")
        table.add_section()
    return table


def step_table(runs: Runs, first: Runs) -> Table:
    table = Table(title="graphmode's steps", title_justify="left", title_style="bold")
    for head in ("data", "run", "steps", "replays", "captures", "first times", "live", "ms a capture", "evictions"):
        table.add_column(head, justify="left" if head in ("data", "run") else "right")
    every = [((d, "first burst"), by_peer) for (d, _), by_peer in first.items()]
    every += [
        ((d, f"{a}, round {n + 1}"), {"graphmode": [row]})
        for (d, a), by_peer in runs.items()
        for n, row in enumerate(by_peer.get("graphmode", []))
    ]
    for (data, name), by_peer in every:
        for row in by_peer.get("graphmode", []):
            steps = sum(row[s] for s in STEPS)
            per_capture = row["capture_seconds_total"] * 1000 / max(1.0, row["captures_total"])
            shares = [f"{row[s] / max(1.0, steps):.1%}" for s in STEPS]
            table.add_row(data, name, f"{steps:.0f}", *shares, f"{per_capture:.0f}", f"{row['evictions_total']:.0f}")
    return table


def rows_of(runs: Runs, first: Runs) -> list[dict[str, Any]]:
    """Every run as a row."""
    kinds = [("first", first), ("measured", runs)]
    return [
        {"kind": kind, "data": data, "arrivals": arrivals, "peer": peer, "round": number, **row}
        for kind, group in kinds
        for (data, arrivals), by_peer in group.items()
        for peer, rows in by_peer.items()
        for number, row in enumerate(rows)
    ]


def names(_: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    known = PEERS if parameter.name == "peers" else tuple(DATA)
    chosen = [n.strip() for n in value.split(",")]
    if unknown := [n for n in chosen if n not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    return chosen


@click.command(context_settings={"show_default": True})
@click.option("--peers", default=",".join(PEERS), callback=names, help=f"comma-separated, of: {', '.join(PEERS)}")
@click.option("--data", default=",".join(DATA), callback=names, help=f"comma-separated, of: {', '.join(DATA)}")
@click.option("--model", type=click.Path(exists=True), help="a model's folder; default: SmolLM2-135M-Instruct in bf16")
@click.option("--rounds", default=2, help="runs of each kind and peer")
@click.option("--requests", default=48, help="requests of a run")
@click.option("--load", default=0.7, help="arrivals, as a share of the requests/s of the slowest peer's first burst")
@click.option("--json", "file", type=click.Path(path_type=Path), help="file to write the rows to")
def main(
    peers: list[str], data: list[str], model: str | None, rounds: int, requests: int, load: float, file: Path | None
) -> None:
    """Times vLLM's servers under mixed arrivals."""
    console = tables.console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this program
    settings = {"rounds": rounds, "requests": requests, "load": load, "concurrency": CONCURRENCY}
    head = {"machine": machine.record(), "settings": settings}
    console.print(machine.describe(head["machine"]), highlight=False)
    folder = str(Path(model or smollm2()).resolve())
    write_conversations(CONVERSATIONS, Path(folder) / "tokenizer.json")
    with ExitStack() as stack:
        servers = {}
        for peer in peers:
            servers[peer] = stack.enter_context(serving(peer, folder, *LIMITS))
            console.print(f"{peer}: answers after {time.perf_counter() - servers[peer].since:.0f} s", style="dim")
        client = stack.enter_context(Worker(f"{HERE}/vllm_client.py:{Client.__name__}"))
        runs, rates, first = measure(Turns(client, servers, folder, requests), data, rounds, load, console)
    console.print(figure_table(runs, rates))
    if "graphmode" in peers:
        console.print(step_table(runs, first))
    if file:
        machine.write(file, head | {"rates": rates}, rows_of(runs, first))


if __name__ == "__main__":
    main()
