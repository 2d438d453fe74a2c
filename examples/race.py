"""Runs one of the demo's jobs by several peers, each in a fresh process, in turns; compares what came out.

Decides who runs when; what a turn does is in jobs.py, how it is shown in demo.py.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from workers import Worker, WorkerFailed  # noqa: E402


class Race:
    """One job. After `run`, what each peer took and answered; a peer that failed is only in `failures`."""

    def __init__(self, job: str, peers: Sequence[str], progress: Progress) -> None:
        self.job, self.peers, self.progress = job, peers, progress
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}
        self.first: dict[str, list[float]] = {}
        self.seconds: dict[str, list[float]] = {peer: [] for peer in peers}
        self.answers: dict[str, list[str]] = {}
        self.numbers: dict[str, np.ndarray] = {}
        self.summary: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        task = self.progress.add_task(self.job, total=None)

        def each(peers: Sequence[str], doing: str, action: Callable[[str], Any]) -> list[str]:
            """The peers for which the action answered something."""
            answered = []
            for peer in peers:
                self.progress.update(task, description=f"{self.job}: {peer} {doing}")
                if self.attempt(peer, action):
                    answered.append(peer)
            return answered

        try:
            working = each(self.peers, "loads and compiles", self.start)
            while working:
                working = each(working, "works", self.turn)
            each(list(self.workers), "hands in its results", self.finish)
        finally:
            for worker in self.workers.values():
                worker.close()
        self.progress.remove_task(task)

    def attempt(self, peer: str, action: Callable[[str], Any]) -> Any:
        """A failure ends that peer, is told at once, and leaves the others going."""
        try:
            return action(peer)
        except WorkerFailed as failure:
            self.failures[peer] = failure.reason
            self.tell(f"{peer} failed\n{failure}", "red")
            if peer in self.workers:
                self.workers.pop(peer).close()
            return None

    def start(self, peer: str) -> bool:
        self.workers[peer] = Worker(ROOT / f"examples/jobs.py:{self.job}", peer)
        self.first[peer] = self.workers[peer].call("first_calls")
        self.tell(f"{peer} made its first call in {self.first[peer][0]:.1f} s", "dim")
        return True

    def turn(self, peer: str) -> bool:
        seconds = self.workers[peer].call("round")
        self.seconds[peer] += seconds
        return bool(seconds)

    def finish(self, peer: str) -> None:
        worker = self.workers[peer]
        self.summary[peer] = worker.call("summary")
        self.answers[peer], self.numbers[peer] = worker.call("results")

    def tell(self, text: str, style: str) -> None:
        self.progress.console.print(f"{self.job}: {text}", style=style, markup=False, highlight=False)

    def calls_like_eager(self, peer: str) -> tuple[int, int]:
        """How many calls gave eager's bits, and how many there were."""
        ours, eager = (self.numbers[name].view(np.int32) for name in (peer, "eager"))
        calls = min(len(ours), len(eager))
        return int((ours[:calls] == eager[:calls]).all(axis=1).sum()), max(len(ours), len(eager))

    def identical(self, peer: str) -> bool:
        """Whether a peer gave eager's answers, and all numbers behind them bit for bit."""
        if peer not in self.numbers or "eager" not in self.numbers:
            return False
        same, calls = self.calls_like_eager(peer)
        return same == calls and self.answers[peer] == self.answers["eager"]
