"""Runs jobs in worker processes that may crash or hang: such an operator is recorded, the others go on.

Owns starting, feeding, timing out and replacing the workers; it imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

Job = tuple[str, str]
Row = dict[str, Any]

_ROOT = Path(__file__).parents[len(__package__.split("."))]
_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "PYTHONFAULTHANDLER": "1",
    "OMP_WAIT_POLICY": "passive",  # a second thread that spins takes the core that the other worker needs
}
START_SECONDS = 120.0
JOBS_PER_WORKER = 300
"""A worker is replaced after so many jobs, for what libraries leave behind in a process."""


def run_jobs(todo: list[Job], *, driver: str, processes: int, timeout: float) -> list[Row]:
    """Every job's rows, in no particular order."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in todo:
        waiting.put(job)
    rows: list[Row] = []
    progress = _Progress(len(todo))

    def serve() -> None:
        worker: _Worker | None = None
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            if worker is None or worker.served >= JOBS_PER_WORKER:
                if worker is not None:
                    worker.stop()
                worker = _Worker(driver)
            answer = worker.run(job, timeout)
            if not worker.alive:
                worker = None
            rows.extend(answer)
            progress.step()
        if worker is not None:
            worker.stop()

    threads = [threading.Thread(target=serve) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


class _Worker:
    def __init__(self, driver: str) -> None:
        self.served = 0
        self.alive = True
        self._ready = False
        self._folder = tempfile.TemporaryDirectory(prefix="parity-mark-")
        self._mark = Path(self._folder.name) / "case"
        self._errors = open(Path(self._folder.name) / "stderr", "w+")  # noqa: SIM115
        command = [sys.executable, "-m", __package__, "--driver", driver, "--worker", str(self._mark)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )

    def run(self, job: Job, timeout: float) -> list[Row]:
        """The job's rows; where the worker died or took too long, one row that says so."""
        if not self._ready:
            if self._answer(START_SECONDS) is None:
                return self._failed(job, "crashed", "the worker did not start")
            self._ready = True
        self.served += 1
        self._mark.write_text("its samples")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its answer will then be the end of the pipe
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        answer = self._answer(timeout)
        if answer is not None:
            rows: list[Row] = json.loads(answer)
            return rows
        if self._process.poll() is None:
            return self._failed(job, "timed out", f"not done after {timeout:g} s of computing")
        return self._failed(job, "crashed", "the process died")

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_pipes()
        self._errors.close()
        self._folder.cleanup()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _answer(self, seconds: float) -> str | None:
        """The next line; None when the worker died, or has computed for so long (or waited ten times as long)."""
        assert self._process.stdout is not None
        computed, deadline = self._computed() + seconds, time.monotonic() + 10 * seconds
        while self._computed() < computed and time.monotonic() < deadline:
            if select.select([self._process.stdout], [], [], 1.0)[0]:
                line = self._process.stdout.readline()
                if not line:
                    self._process.wait()
                return line or None
        return None

    def _computed(self) -> float:
        # Seconds of the processor, not of the clock: on a busy machine a sound operator may take minutes.
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _failed(self, job: Job, kind: str, what: str) -> list[Row]:
        self._process.kill()
        status = self._process.wait()
        self._close_pipes()
        where = self._mark.read_text() if self._mark.exists() else "the start"
        self._errors.seek(0)
        detail = f"{what} (status {status}) at {where}: {_gist(self._errors.read())}"
        self.alive = False
        self._errors.close()
        self._folder.cleanup()
        row = {"op": job[0], "dtype": job[1], "label": "all", "kind": kind, "detail": detail[:600]}
        return [row | _NO_COUNTS]


def _gist(errors: str) -> str:
    """Python's own account of a fatal error, innermost frame first, else the last lines."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines) - 5)
    return " | ".join(lines[max(fatal, 0) :][:8])


_NO_COUNTS: Row = {"replays": 0, "reasons": {}, "sensitive": False, "seconds": 0.0, "passed": False}


class _Progress:
    """A line on stderr now and then, for a sweep that takes minutes."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._shown = total, 0, time.monotonic()
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._done += 1
            if time.monotonic() - self._shown > 10 or self._done == self._total:
                self._shown = time.monotonic()
                print(f"{self._done} of {self._total} operators and dtypes", file=sys.stderr)
