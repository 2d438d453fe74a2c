"""One engine after another, each in a process of its own that begins with vLLM imported, and what became of two."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import engine

SECONDS = 240.0  # for one engine
EAGER = {"enforce_eager": True}


@dataclass
class Row:
    """A case in graph mode against the same case with enforce_eager."""

    name: str
    subject: str
    result: str
    equal: bool = False
    graphs: int = 0
    replays: int = 0
    live_calls: int = 0
    why: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, subject: str, asked: dict[str, Any]) -> Row:
    """Both engines, and how they differ. `asked` is what engine.main takes."""
    began = time.perf_counter()
    eager = run({**asked, "engine": {**asked["engine"], **EAGER}})
    ours = run(asked)
    row = _row(name, subject, ours, eager)
    row.seconds = time.perf_counter() - began
    return row


def _row(name: str, subject: str, ours: dict[str, Any], eager: dict[str, Any]) -> Row:
    if "error" in eager:
        both = "" if "error" in ours else "; graph mode runs"
        return Row(name, subject, f"does not run in vLLM on this CPU, with eager either{both}", why=[eager["error"]])
    if "error" in ours:
        return Row(name, subject, "FAILS in graph mode", why=[ours["error"]])
    report = ours.get("report", {"graphs": 0, "replays": 0, "live_calls": 0, "breaks": 0, "fallbacks": [], "notes": {}})
    row = Row(name, subject, "", ours["answers"] == eager["answers"])
    row.graphs, row.replays, row.live_calls = report["graphs"], report["replays"], report["live_calls"]
    row.why = [*report["fallbacks"], *report["notes"]]
    if not row.equal:
        row.result = "DIFFERS from eager"
        row.why.insert(0, _difference(ours["answers"], eager["answers"]))
    elif not ours["compiled"]:
        row.result = "falls back"
        row.why.append("vLLM compiles nothing in this configuration")
    elif not ours.get("programs"):
        row.result = "falls back"
        row.why.append("vLLM hands no program of this model to a compiler")
    elif report["breaks"]:
        row.result = "graph mode with breaks" if row.replays else "falls back"
    else:
        row.result = "graph mode" if row.replays else "falls back"
    if ours.get("own_ops"):
        row.why.append(f"replays call {', '.join(ours['own_ops'])} as they are")
    if row.result == "falls back" and not row.why:
        row.why.append("no size of a step came twice")
    for name, count in ours.get("counted", {}).items():
        row.why.append(f"{name.removeprefix('vllm:')}: {count}")
        if not count:
            row.result = f"not tried: {name} is 0"
    return row


def _difference(ours: list[Any], eager: list[Any]) -> str:
    if len(ours) != len(eager):
        return f"{len(ours)} answers, and {len(eager)} in eager"
    first = next(i for i, (a, b) in enumerate(zip(ours, eager, strict=True)) if a != b)
    count = sum(a != b for a, b in zip(ours, eager, strict=True))
    here, there = str(ours[first])[-60:], str(eager[first])[-60:]
    return f"{count} of {len(ours)} answers, first {first}: {here}; in eager {there}"


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """What engine.main found, or {"error": the exception}."""
    import vllm  # here, once: each engine forks from this process
    import vllm.platforms

    vllm.platforms.current_platform.get_device_name()
    _ = vllm.LLM
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "found.json"), Path(folder, "log")
        child = os.fork()
        if child == 0:
            _answer(asked, result, log)
        status = _wait(child)
        text = log.read_text(errors="replace")
        if path := os.environ.get("MATRIX_LOG"):
            with Path(path).open("a") as kept:
                kept.write(f"\n##### {json.dumps(asked)}\n{text}")
        if result.exists():
            found: dict[str, Any] = json.loads(result.read_text())
            missing = re.findall(r"(?:ModuleNotFoundError|ImportError): .*", text)
            if "error" in found and missing:  # vLLM's own words say no more than "check the logs"
                found["error"] += f" ({missing[-1]})"
            return found
        return {"error": f"the process ended with {status}"}


def _answer(asked: dict[str, Any], result: Path, log: Path) -> None:
    """The child: never returns."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        found = engine.main(asked)
    except BaseException as error:
        traceback.print_exc()
        found = {"error": _cause(error)}
    result.write_text(json.dumps(found))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[1] if "validation error" in lines[0] and len(lines) > 1 else lines[0]
    return f"{type(error).__name__}: {said.partition(' [type=')[0]}"[:240]


def _wait(child: int) -> str:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status >> 8}"
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no answer in {SECONDS:.0f} s"
