"""`make demo-vllm`: serves SmolLM2 with vLLM in eager, vLLM's default and graphmode, asks it, and compares the three.

Each server is vLLM's own, started fresh and ended before the next one. Exits with 1 when a server failed, or when
graphmode replayed nothing. `--modes eager,graphmode` leaves the default, which compiles for a minute, out.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from machine import describe, record
from timing import median
from vllm_server import SERVED, Server, ServerFailed, serving

MODES = ("eager", "default", "graphmode")
QUESTIONS = [
    "Explain in three sentences why the sky is blue.",
    "What is the capital of France? Answer in one sentence.",
    "Write two sentences about a lighthouse keeper.",
]
TOKENS = 80  # of an answer, at most
TIMED = 128  # tokens of a timed stream, and of each client's request
CLIENTS = 4
LIMITS = ("--max-model-len", "2048", "--max-num-seqs", "16")


@dataclass
class Result:
    """What one mode showed."""

    started: float = 0.0  # seconds from the server's start to the first token
    answers: list[str] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)  # seconds a token, of each timed stream
    rate: float = 0.0  # tokens/s of all clients together
    counts: dict[str, float] = field(default_factory=dict)
    failure: str = ""


class Visitor:
    """A user of one server, by the `openai` client."""

    def __init__(self, server: Server) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=f"{server.url}/v1", api_key="none needed", max_retries=0, timeout=600)

    def ask(self, question: str, tokens: int = TOKENS, **more: Any) -> Any:
        """A greedy answer of the chat endpoint, as the client gives it."""
        messages = [{"role": "user", "content": question}]
        return self.client.chat.completions.create(
            model=SERVED, messages=messages, max_tokens=tokens, temperature=0, **more
        )

    def stream(self, question: str, tokens: int = TOKENS, **more: Any) -> Iterator[str]:
        """The same, piece by piece."""
        for chunk in self.ask(question, tokens, stream=True, **more):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


WHOLE = {"extra_body": {"ignore_eos": True}}  # exactly as many tokens as asked for


def visit(server: Server, result: Result, console: Console, tell: Any, aloud: bool) -> None:
    """All that is done with one server."""
    visitor = Visitor(server)
    next(visitor.stream("Hello", 1))
    result.started = time.perf_counter() - server.since
    tell(f"{server.peer}: answers")
    for i, question in enumerate(QUESTIONS):
        streamed = i == len(QUESTIONS) - 1
        result.answers.append("".join(visitor.stream(question)) if streamed else said(visitor.ask(question)))
        if aloud:
            console.print(f"\n[bold cyan]{question}[/]{' [dim](streamed)[/]' if streamed else ''}", highlight=False)
            console.print(result.answers[-1].strip(), highlight=False, markup=False)
    tell(f"{server.peer}: a single stream is timed")
    result.steps = [step(visitor, question) for question in QUESTIONS]
    tell(f"{server.peer}: {CLIENTS} clients at once are timed")
    together(visitor)  # batches of these sizes are captured
    result.rate = together(visitor)
    if server.peer == "graphmode":
        time.sleep(1.5)  # a worker writes its counts once a second
        result.counts = server.graphmode()


def said(answer: Any) -> str:
    return answer.choices[0].message.content


def step(visitor: Visitor, question: str) -> float:
    """Seconds from token to token of a stream, on average: pieces that arrive late arrive several at once."""
    times = [time.perf_counter() for _ in visitor.stream(question, TIMED, **WHOLE)]
    return (times[-1] - times[0]) / (TIMED - 1)


def together(visitor: Visitor) -> float:
    """Tokens per second that all clients together are given."""
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [QUESTIONS[i % len(QUESTIONS)] for i in range(CLIENTS)]
        answers = list(clients.map(lambda q: visitor.ask(q, TIMED, **WHOLE), asked))
    return sum(a.usage.completion_tokens for a in answers) / (time.perf_counter() - start)


def table(results: dict[str, Result]) -> Table:
    table = Table(title="vLLM serves SmolLM2-135M, bf16", title_justify="left", title_style="bold")
    table.add_column("")
    for mode in results:
        table.add_column(mode, justify="right")
    names = ["start to the first token, s", "ms per token, one stream", f"tokens/s, {CLIENTS} clients"]
    names += ["graphs / replays", "answers equal eager's"]
    for row in zip(names, *(column(results, mode) for mode in results), strict=True):
        table.add_row(*row)
    return table


def column(results: dict[str, Result], mode: str) -> list[str]:
    result = results[mode]
    if result.failure:
        return ["[red]failed", *[""] * 4]
    counts, equal = "-", "-"
    if result.counts:
        counts = f"{result.counts['graphs']:.0f} / {result.counts['replays_total']:.0f}"
    theirs = results.get("eager")
    if mode != "eager" and theirs is not None and not theirs.failure:
        same = sum(a == b for a, b in zip(result.answers, theirs.answers, strict=True))
        equal = f"{same} of {len(QUESTIONS)}"
    return [
        f"{result.started:.1f}",
        f"{median(result.steps) * 1000:.1f}",
        f"{result.rate:.0f}",
        counts,
        equal,
    ]


def run(mode: str, model: str, console: Console, aloud: bool) -> Result:
    result = Result()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        hint = ", a minute or more: it compiles" if mode == "default" else ""
        task = progress.add_task(f"{mode}: the server starts{hint}", total=None)
        try:
            with serving(mode, model, *LIMITS) as server:
                try:
                    visit(server, result, console, lambda text: progress.update(task, description=text), aloud)
                except Exception as error:  # whatever the client says when its server is gone
                    raise server.failed(f"{type(error).__name__}: {error}") from error
                progress.update(task, description=f"{mode}: the server ends")
        except ServerFailed as failure:
            result.failure = str(failure)
    return result


def names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    chosen = [name.strip() for name in value.split(",")]
    if unknown := [name for name in chosen if name not in MODES]:
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(MODES)}")
    return chosen


@click.command(context_settings={"show_default": True})
@click.option("--modes", default=",".join(MODES), callback=names, help="comma-separated, in the order of their turns")
def main(modes: list[str]) -> None:
    """Serves SmolLM2 with vLLM in several modes, asks it questions, and compares the modes."""
    console = Console()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends with this program
    console.print(f"graphmode in vLLM on {describe(record())}", highlight=False)
    model = prepared(console)
    aloud = "graphmode" if "graphmode" in modes else modes[-1]
    results: dict[str, Result] = {}
    try:
        for mode in modes:
            results[mode] = run(mode, model, console, mode == aloud)
            if results[mode].failure:
                console.print(results[mode].failure, style="red", highlight=False, markup=False, soft_wrap=True)
            elif mode != aloud:
                console.print(f"{mode}: done, first token after {results[mode].started:.1f} s", style="dim")
    except KeyboardInterrupt:
        console.print("interrupted; the server has ended", style="yellow")
        sys.exit(130)
    console.print()
    console.print(table(results))
    console.print(f"{time.monotonic() - start:.0f} s in all", highlight=False)
    replayed = "graphmode" not in results or results["graphmode"].counts.get("replays_total", 0) > 0
    sys.exit(0 if replayed and not any(r.failure for r in results.values()) else 1)


def prepared(console: Console) -> str:
    """The model's folder: weights, config, tokenizer and chat template, made from its package at the first time."""
    os.environ["TQDM_DISABLE"] = "1"  # the status line is enough
    with console.status("the model's weights are prepared"):
        from generate import checkpoint

        return str(checkpoint())


if __name__ == "__main__":
    main()
