"""Memory of vLLM's engine, eager against graph mode, by number of captured batch sizes.

`python benchmarks/vllm_memory.py --json build/vllm-memory.json --out docs/vllm-memory.md`. One engine at a time, in a
process of its own; the same requests to both. Sizes are captured from the largest down, so that what grows afterwards
is not the arena.
"""

import gc
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import machine
import tables
from rich.console import Console
from rich.table import Table
from vllm_engine import Engine, environment
from workers import Worker

HERE = Path(__file__).parent
MODELS_OF_TESTS = HERE.parent / "tests" / "integration" / "vllm" / "models.py"
PEERS = ("eager", "graphmode")
MEMORY = 4.0  # GiB for an engine
ARGUMENTS = {"max_model_len": 512, "max_num_seqs": 32}
LARGEST = 32
CHECKPOINTS = (0, 1, 2, 4, 8, 16, 32)  # sizes captured
PROMPT = 37  # tokens: no sum of prompts is the size of a decode step, and none comes twice
TOKENS = 6  # of each answer: one step as it is, one captured, the others replayed
DEEPSEEK = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 256,
    "vocab_size": 40_960,
    "max_position_embeddings": 1024,
}
MIB = 2**20


class Measured(Engine):
    """An engine that says what its process holds."""

    def memory(self) -> dict[str, Any]:
        """MiB of the process, and bytes of graphs."""
        gc.collect()
        with open("/proc/self/smaps_rollup") as lines:
            sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
        found: dict[str, Any] = {f"{n.lower()}_mib": int(sizes[n].split()[0]) / 1024 for n in ("Rss", "Pss")}
        found["kv_tokens"] = self.state()["kv_tokens"]
        if self.peer == "graphmode":
            import graphmode

            report = graphmode.report()
            found |= {"graphs": report.graphs, "arena": report.bytes.arena, "constants": report.bytes.fixed}
            found |= {"live_calls": report.live_calls, "fallbacks": [f.reason for f in report.fallbacks]}
        return found


def sizes() -> list[int]:
    """Batch sizes in the order in which they come: powers of two from the largest down, then all others."""
    powers = [LARGEST >> i for i in range(LARGEST.bit_length())]
    return [*powers, *(n for n in range(LARGEST, 0, -1) if n not in powers)]


def measured(peer: str, model: str, arguments: dict[str, Any], console: Console) -> list[dict[str, Any]]:
    """One row per checkpoint."""
    folder = Path(tempfile.mkdtemp(prefix="graphmode-vllm-"))
    rows: list[dict[str, Any]] = []
    target = f"{HERE}/vllm_memory.py:{Measured.__name__}"
    try:
        with Worker(target, peer, model, MEMORY, {**ARGUMENTS, **arguments}, **environment(peer, folder)) as worker:
            for number, size in enumerate([0, *sizes()]):
                if number:
                    worker.call("steps", size, TOKENS, PROMPT)
                if number in CHECKPOINTS:
                    rows.append({"sizes": number, **worker.call("memory")})
                    console.print(f"{peer}: {number} sizes, {rows[-1]['rss_mib']:.0f} MiB", style="dim")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


@contextmanager
def deepseek() -> Iterator[str]:
    """A folder with the configuration; vLLM makes up the weights, whose values take no memory of their own."""
    spec = importlib.util.spec_from_file_location("models_of_tests", MODELS_OF_TESTS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as name:
        module.MODELS["deepseek_v3"].write(Path(name), DEEPSEEK)
        yield name


def per_graph(rows: dict[str, list[dict[str, Any]]]) -> float:
    """MiB of the process that each graph beyond the eighth adds to what the same requests add in eager."""
    ours, eager = ({r["sizes"]: r for r in rows[p]} for p in ("graphmode", "eager"))
    more = [side[32]["rss_mib"] - side[8]["rss_mib"] for side in (ours, eager)]
    return (more[0] - more[1]) / (ours[32]["graphs"] - ours[8]["graphs"])


def table(name: str, rows: dict[str, list[dict[str, Any]]]) -> Table:
    found = Table(title=name, title_justify="left", title_style="bold")
    for head in HEAD:
        found.add_column(head, justify="right")
    for cells in lines_of(rows):
        found.add_row(*cells)
    return found


HEAD = (
    "sizes captured",
    "eager: RSS, MiB",
    "PSS",
    "graph mode: RSS, MiB",
    "PSS",
    "graphs",
    "arena, KiB",
    "constants, B",
)


def lines_of(rows: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The table's cells."""
    lines = []
    for eager, ours in zip(rows["eager"], rows["graphmode"], strict=True):
        cells = ["start" if not ours["sizes"] else str(ours["sizes"])]
        for side in (eager, ours):
            cells += [f"{side['rss_mib']:,.0f}", f"{side['pss_mib']:,.0f}"]
        cells += [str(ours["graphs"]), f"{ours['arena'] / 1024:,.0f}", f"{ours['constants']:,}"]
        lines.append(cells)
    return lines


def page(head: dict[str, Any], found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The tables in Markdown."""
    on = head["machine"]
    lines = [
        "# vLLM: does memory grow?",
        "",
        "By one arena that all graphs share, as large as the largest captured size needs, and by what each graph "
        "holds to be replayed. Weights and cache are read where they are. Graphs have a cap, which vLLM's sizing of "
        "the key-value cache takes into account ([how](design/vllm-memory.md)).",
        "",
        f"`benchmarks/vllm_memory.py`, {on['date'][:10]}, {machine.describe(on)}; one engine in one process, "
        f"{MEMORY:.0f} GiB for each (as `gpu_memory_utilization`), the same requests to both; decode steps of batch "
        f"sizes from {LARGEST} down. RSS and PSS are the whole process's, with Python, torch, vLLM and weights.",
    ]
    for name, rows in found.items():
        tokens = {p: rows[p][0]["kv_tokens"] for p in PEERS}
        lines += ["", f"## {name}", "", "| " + " | ".join(HEAD) + " |", "|" + "---:|" * len(HEAD)]
        lines += ["| " + " | ".join(cells) + " |" for cells in lines_of(rows)]
        lines += [
            "",
            f"Key-value cache: {tokens['eager']:,} tokens in eager, {tokens['graphmode']:,} in graph mode "
            f"({tokens['graphmode'] / tokens['eager']:.1%}). A graph beyond the eighth adds "
            f"{per_graph(rows):.2f} MiB to the process.",
        ]
    return "\n".join([*lines, ""])


@click.command(context_settings={"show_default": True})
@click.option("--only", default="SmolLM2-135M,DeepSeek-V3-shaped", help="comma-separated")
@click.option("--json", "file", type=click.Path(path_type=Path), help="file to write the rows to")
@click.option("--out", type=click.Path(path_type=Path), help="the Markdown page")
def main(only: str, file: Path | None, out: Path | None) -> None:
    """Measures the memory of vLLM's engine, eager against graph mode."""
    console = tables.console()
    head = {"machine": machine.record(), "settings": {"gib": MEMORY, "arguments": ARGUMENTS, "deepseek": DEEPSEEK}}
    console.print(machine.describe(head["machine"]), highlight=False)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with deepseek() as folder:
        made_up = {"load_format": "dummy", "skip_tokenizer_init": True}
        cases: dict[str, tuple[str | None, dict[str, Any]]] = {
            "SmolLM2-135M": (None, {}),
            "DeepSeek-V3-shaped": (folder, made_up),
        }
        for name in only.split(","):
            model, arguments = cases[name.strip()]
            if model is None:
                from vllm import smollm2  # benchmarks/vllm.py: this program's folder is first on the path

                model = smollm2()
            found[name] = {p: measured(p, model, arguments, console) for p in PEERS}
            console.print(table(name, found[name]))
            if file:
                rows = [{"model": n, "peer": p, "rows": r} for n, by in found.items() for p, r in by.items()]
                machine.write(file, head, rows)
            if out:
                out.write_text(page(head, found))


if __name__ == "__main__":
    main()
