"""Runs cases in child processes, several in each: a crash, a hang or a leak costs one case, not the sweep."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from .row import Row, Verdict

SWEEP = Path(__file__).parent.parent / "sweep.py"
BATCH = 12
TAIL = 2000


def run_isolated(
    cases: Sequence[tuple[str, str]], backend: str, timeout: float, command: Sequence[str] = ()
) -> Iterator[Row]:
    """A row for each (name, family) of `cases`; `timeout` is seconds for one case, imports included."""
    command = command or (sys.executable, str(SWEEP), "--backend", backend, "--worker")
    todo = list(cases)
    while todo:
        done = 0
        for row in _run_batch(command, todo[:BATCH], timeout):
            done += 1
            yield row
        todo = todo[done:]


def _run_batch(command: Sequence[str], batch: Sequence[tuple[str, str]], timeout: float) -> Iterator[Row]:
    """Rows until the batch or its child ends; the last row of a child that died or hung says so."""
    arguments = [*command, *(name for name, _ in batch)]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=said, text=True) as child,
    ):
        assert child.stdout
        lines: Queue[str | None] = Queue()
        reader = threading.Thread(target=_read_lines, args=(child.stdout, lines))
        reader.start()
        try:
            for name, family in batch:
                try:
                    line = lines.get(timeout=timeout)
                except Empty:
                    detail = f"no result in {timeout:g} s"
                    yield Row(name, family, verdict=Verdict.TIMED_OUT, detail=detail, seconds=timeout)
                    return
                if line is None:
                    detail = f"exit status {child.wait()}: {_tail(said)}"
                    yield Row(name, family, verdict=Verdict.CRASHED, detail=detail)
                    return
                yield Row.from_json(json.loads(line))
        finally:
            child.kill()
            reader.join()


def _read_lines(stream: IO[str], lines: "Queue[str | None]") -> None:
    """Fills the queue with the stream's lines, then None: a queue can be waited on for some seconds only."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def _tail(said: IO[str]) -> str:
    said.seek(0)
    return said.read()[-TAIL:].strip()


def answer(names: Sequence[str], trial: Callable[[str], Row]) -> None:
    """The child's side: a JSON line per case on the real standard output, what models print elsewhere."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for name in names:
            print(json.dumps(trial(name).as_json()), file=out, flush=True)
