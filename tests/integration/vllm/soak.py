"""Thousands of requests to vLLM's server in graph mode, of all kinds, and what became of its memory.

python tests/integration/vllm/soak.py --requests 5000 --rows build/vllm-soak.json --out docs/vllm-soak.md --eager
python tests/integration/vllm/soak.py --requests 5000 --rows build/vllm-soak.json --out docs/vllm-soak.md

Exits with 1 when something fell short. The page has what both modes left in the file of rows; graph mode may grow by
what eager's row says, and `ROOM`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from server import Server, serving

KINDS_OF_STEP = 2  # decode steps, and steps with a prompt: each has its own `max_graphs`
PROBE = {
    "model": "small",
    "prompt": [(7 * i) % 500 + 4 for i in range(50)],  # less than a block: no cached prefix changes how it is run
    "max_tokens": 24,
    "temperature": 0,
    "ignore_eos": True,
    "logprobs": 1,
}
KINDS = {"whole": 45, "stream": 25, "leaves": 15, "several": 10, "bad": 5}  # per cent
# Requests that have to be refused, and requests of a size.
BAD: tuple[dict[str, Any], ...] = (
    {"prompt": [5] * 300},  # longer than the model
    {"prompt": [5, 10**6]},  # no such token
    {"max_tokens": -1},
    {"temperature": -1.0},
    {"model": "another"},
    {"prompt": None},
)
ANSWER, IDLE = 300.0, 60.0  # seconds: for one answer, and until nothing runs or waits at the end
BLOCKS = 12  # fewer than eight full requests need, so that some are preempted
# oneDNN keeps the code of this many matrix products. With its own 1,024 they fill in the first half of 5,000 requests,
# in eager as in graph mode, by 400 MB; this many are full after the first tenth.
PRIMITIVES = 128
MIB = 2**20
ROOM = 24 * MIB  # see `growth`
GROWTH = "growth over nine tenths, MiB"


@dataclass
class Sample:
    """The server at one moment."""

    done: int  # requests
    seconds: float
    pss: dict[str, int]  # bytes by process: pages shared with others count in parts
    rss: dict[str, int]
    graphs: float
    arena: float
    running: float
    waiting: float


@dataclass
class Outcome:
    """What a soak found."""

    requests: int
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)  # answers that were not what was asked for
    samples: list[Sample] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)  # three before, one after
    left: dict[str, float] = field(default_factory=dict)  # running, waiting, share of blocks used at the end
    counted: dict[str, float] = field(default_factory=dict)  # graphmode's counters at the end
    max_graphs: int = 0


class Clients:
    """Concurrent clients that take requests from one list until it is empty."""

    def __init__(self, url: str, requests: int, seed: int) -> None:
        self.done = 0
        self.outcome = Outcome(requests)
        self._url = url
        self._chosen = random.Random(seed)
        self._left = requests

    async def run(self, clients: int) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._url, connector=connector) as session:
            await asyncio.gather(*(self._client(session) for _ in range(clients)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while self._left > 0:
            self._left -= 1
            (kind,) = self._chosen.choices(list(KINDS), list(KINDS.values()))
            self.outcome.kinds[kind] = self.outcome.kinds.get(kind, 0) + 1
            body = self._body(kind)
            try:
                async with asyncio.timeout(ANSWER):
                    wrong = await self._ask(session, kind, body)
            except TimeoutError:
                wrong = f"no answer in {ANSWER:.0f} s"
            except (aiohttp.ClientError, json.JSONDecodeError) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                self.outcome.wrong.append(f"{kind}, {len(body.get('prompt') or [])} tokens: {wrong}")
            self.done += 1

    def _body(self, kind: str) -> dict[str, Any]:
        chosen = self._chosen
        length = chosen.randint(1, 200) if chosen.random() < 0.3 else chosen.randint(1, 24)
        body = {
            "model": "small",
            "prompt": [chosen.randrange(4, 512) for _ in range(length)],
            "max_tokens": chosen.randint(1, 40),
            "temperature": chosen.choice((0.0, 0.0, 0.8)),
            "ignore_eos": True,
        }
        if kind in ("stream", "leaves"):
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if kind == "leaves":
            body["max_tokens"] = 50  # it is still being answered when the client leaves
        if kind == "several":
            body |= {"n": chosen.randint(2, 3), "temperature": 0.8}
        if kind == "bad":
            body |= chosen.choice(BAD)
        return body

    async def _ask(self, session: aiohttp.ClientSession, kind: str, body: dict[str, Any]) -> str:
        """Asks, and says what is wrong with the answer."""
        leaves_at = self._chosen.randint(0, 6)
        async with session.post("/v1/completions", json=body) as answer:
            if kind == "bad":
                return "" if 400 <= answer.status < 500 else f"a bad request was answered with {answer.status}"
            if answer.status != 200:
                return f"status {answer.status}: {(await answer.text())[:200]}"
            if kind == "leaves":
                for _ in range(leaves_at):
                    await answer.content.readline()
                answer.close()
                return ""
            if kind == "stream":
                found, ended = await _streamed(answer)
                if not ended:
                    return "the stream broke off"
            else:
                found = await answer.json()
        wanted = body["max_tokens"] * body.get("n", 1)
        tokens = found["usage"]["completion_tokens"]
        return "" if tokens == wanted else f"{tokens} tokens came for {wanted}"


async def _streamed(answer: aiohttp.ClientResponse) -> tuple[dict[str, Any], bool]:
    """The last chunk of a stream, and whether the stream came to its end."""
    last: dict[str, Any] = {}
    async for line in answer.content:
        text = line.decode().removeprefix("data: ").strip()
        if text == "[DONE]":
            return last, True
        if text:
            last = json.loads(text)
    return last, False


def soak(
    requests: int,
    clients: int = 16,
    *,
    eager: bool = False,
    max_graphs: int = 64,
    primitives: int = PRIMITIVES,
    seed: int = 3,
    period: float = 2.0,
) -> Outcome:
    """One server, and `requests` requests to it by `clients` at a time.

    Args:
        eager: the server runs with `--enforce-eager`.
        max_graphs: graphmode's option of that name.
        primitives: matrix products whose code oneDNN keeps.
        period: seconds from one look at the server's memory to the next.
    """
    given = json.dumps({"graphmode": {"max_graphs": max_graphs}})
    arguments = ["--num-gpu-blocks-override", str(BLOCKS), "--additional-config", given]
    arguments += ["--enforce-eager"] if eager else []
    with serving("llama", *arguments, environment={"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(primitives)}) as server:
        probes = [_probe(server) for _ in range(3)]  # as it is, captured, replayed
        asking = Clients(server.url, requests, seed)
        outcome = asking.outcome
        outcome.max_graphs = max_graphs
        start = time.perf_counter()
        asyncio.run(_run(asking, server, clients, period, start))
        outcome.seconds = time.perf_counter() - start
        outcome.left = _wait_until_idle(server)
        outcome.samples.append(_look(server, asking.done, time.perf_counter() - start))
        outcome.probes = [*probes, _probe(server)]
        outcome.counted = {name: sum(v.values()) for name, v in server.metrics("graphmode_").items()}
    return outcome


async def _run(asking: Clients, server: Server, clients: int, period: float, start: float) -> None:
    async def watch() -> None:
        while True:
            found = await asyncio.to_thread(_look, server, asking.done, time.perf_counter() - start)
            asking.outcome.samples.append(found)
            await asyncio.sleep(period)

    watching = asyncio.create_task(watch())
    try:
        await asking.run(clients)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _probe(server: Server) -> Any:
    (choice,) = server.post("/v1/completions", PROBE)["choices"]
    return [choice["text"], choice["logprobs"]["token_logprobs"]]


def _look(server: Server, done: int, seconds: float) -> Sample:
    pss: dict[str, int] = {}
    rss: dict[str, int] = {}
    me = psutil.Process(server.process.pid)
    for process in [me, *me.children(recursive=True)]:
        name = f"{'server' if process == me else process.name()} {process.pid}"
        with contextlib.suppress(psutil.NoSuchProcess):
            found = process.memory_full_info()
            pss[name], rss[name] = found.pss, found.rss
    ours = {name: sum(v.values()) for name, v in server.metrics("graphmode_").items()}
    theirs = {name: sum(v.values()) for name, v in server.metrics("vllm:num_requests_").items()}
    return Sample(
        done,
        seconds,
        pss,
        rss,
        ours.get("graphmode_graphs", 0.0),
        ours.get("graphmode_arena_bytes", 0.0),
        theirs["vllm:num_requests_running"],
        theirs["vllm:num_requests_waiting"],
    )


def _wait_until_idle(server: Server) -> dict[str, float]:
    """What still runs or waits, and the share of the cache's blocks in use; waits until that is nothing."""
    until = time.monotonic() + IDLE
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    while True:
        found = server.metrics("vllm:")
        left = {name.removeprefix("vllm:"): sum(found[name].values()) for name in names}
        if not any(left.values()) or time.monotonic() > until:
            time.sleep(2)  # graphmode's counters are written once a second
            return left
        time.sleep(0.5)


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least squares: the slope, and the line's height at the first x."""
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x0) ** 2 for x in xs)
    slope = sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    return slope, y0 + slope * (xs[0] - x0)


def growth(outcome: Outcome, process: str | None = None) -> float:
    """Bytes by which memory (PSS of all processes, or of one) grew over the last nine tenths of the requests.

    By a line fitted to the samples, so that neither one request's intermediates nor the moment of the last sample
    decide. `ROOM` is what it may be beyond eager's: about 1.5 % of what the processes hold, so that one allocator's
    pages do not decide; a leak of 6 kB a request lies above it in 5,000 requests.
    """
    late = [s for s in outcome.samples if s.done >= outcome.requests / 10]
    held = [float(sum(s.pss.values()) if process is None else s.pss.get(process, 0)) for s in late]
    xs = [float(s.done) for s in late]
    slope, _ = fit(xs, held)
    return slope * (xs[-1] - xs[0])


def shortfalls(outcome: Outcome, eager: bool = False) -> list[str]:
    """What was promised and is not so. Growth is judged by whoever sent enough requests for a line."""
    found = list(outcome.wrong)
    found += [f"at the end {name} is {value}" for name, value in outcome.left.items() if value]
    if any(p != outcome.probes[0] for p in outcome.probes):
        found.append(f"the probe's answers differ: {outcome.probes}")
    if sum(outcome.kinds.values()) != outcome.requests:
        found.append(f"{sum(outcome.kinds.values())} requests of {outcome.requests} were sent")
    if not eager:
        most = max(s.graphs for s in outcome.samples)
        if most > KINDS_OF_STEP * outcome.max_graphs:
            found.append(f"{most:.0f} graphs, and max_graphs is {outcome.max_graphs} for each of {KINDS_OF_STEP} kinds")
        if not outcome.counted.get("graphmode_replays_total"):
            found.append("nothing was replayed")
    return found


def page(rows: dict[str, Any]) -> str:
    """The Markdown page of what both modes left."""
    lines = ["# vLLM: a soak", ""]
    lines += [
        "Requests of random lengths, 16 clients at a time, to vLLM's server on a small Llama of random weights: whole "
        "and streamed answers, several answers to one prompt, clients that leave in the middle, and bad requests; "
        f"{BLOCKS} blocks of key-value cache, so that requests are preempted. `tests/integration/vllm/soak.py`.",
        "",
        "Growth is that of a line fitted to the memory of all the server's processes (PSS) over the last nine tenths "
        f"of the requests; {ROOM / MIB:.0f} MiB more than eager's are allowed. oneDNN keeps the code of "
        "matrix products, one for each size of a step, 1,024 unless told otherwise: with those, eager and "
        "graph mode alike grow until that cache is "
        f"full. With {PRIMITIVES} it is full after the first tenth.",
        "",
        "| | " + " | ".join(rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]
    for name in next(iter(rows.values())):
        lines.append(f"| {name} | " + " | ".join(str(row.get(name, "")) for row in rows.values()) + " |")
    return "\n".join([*lines, ""])


def row_of(outcome: Outcome, short: list[str]) -> dict[str, Any]:
    """One mode's column of the page."""
    late = [s for s in outcome.samples if s.done >= outcome.requests / 10]
    counted = {k.removeprefix("graphmode_").removesuffix("_total"): v for k, v in outcome.counted.items()}
    row: dict[str, Any] = {
        "machine": _machine(),
        "requests": f"{outcome.requests:,}",
        "of them": ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.kinds.items())),
        "seconds": f"{outcome.seconds:.0f}",
        "PSS after the first tenth, MiB": f"{sum(late[0].pss.values()) / MIB:.1f}",
        "PSS at the end, MiB": f"{sum(late[-1].pss.values()) / MIB:.1f}",
        GROWTH: f"{growth(outcome) / MIB:+.1f}",
    }
    for process in late[-1].pss:
        if late[-1].pss[process] > 32 * MIB:
            row[f"growth of {process.rpartition(' ')[0]}, MiB"] = f"{growth(outcome, process) / MIB:+.1f}"
    row |= {
        "graphs, most at a time": f"{max(s.graphs for s in outcome.samples):.0f}",
        "arena, MiB at the end": f"{late[-1].arena / MIB:.2f}",
        "captures, evictions": f"{counted.get('captures', 0):,.0f}, {counted.get('evictions', 0):,.0f}",
        "replays": f"{counted.get('replays', 0):,.0f}",
        "requests left running or waiting, blocks in use": ", ".join(f"{v:g}" for v in outcome.left.values()),
        "the probe's four answers": "equal" if all(p == outcome.probes[0] for p in outcome.probes) else "DIFFER",
        "short of what was promised": "; ".join(short[:5]) or "nothing",
    }
    return row


def _machine() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else 'unknown CPU'}, {len(psutil.Process().cpu_affinity())} cores, {time.strftime('%F')}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--eager", action="store_true", help="the same server with --enforce-eager")
    parser.add_argument("--primitives", type=int, default=PRIMITIVES, help="products whose code oneDNN keeps")
    parser.add_argument("--rows", type=Path, help="columns of the page as JSON, kept from run to run")
    parser.add_argument("--samples", type=Path, help="everything that was seen, as JSON")
    parser.add_argument("--out", type=Path, help="the Markdown page")
    asked = parser.parse_args(argv)
    outcome = soak(asked.requests, asked.clients, eager=asked.eager, primitives=asked.primitives)
    kept = json.loads(asked.rows.read_text()) if asked.rows and asked.rows.exists() else {}
    short = shortfalls(outcome, asked.eager)
    before = kept.get(f"eager, {asked.primitives:,} primitives", {})
    allowed = ROOM / MIB + max(float(before.get(GROWTH, 0.0)), 0.0)
    if growth(outcome) / MIB > allowed:
        short.append(f"memory grew by {growth(outcome) / MIB:.1f} MiB; {allowed:.1f} are allowed")
    if asked.samples:
        asked.samples.write_text(json.dumps(asdict(outcome)))
    name = f"{'eager' if asked.eager else 'graph mode'}, {asked.primitives:,} primitives"
    kept[name] = row_of(outcome, short)
    if asked.rows:
        asked.rows.write_text(json.dumps(kept, indent=1))
    if asked.out:
        asked.out.write_text(page(kept))
    print(page(kept))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
