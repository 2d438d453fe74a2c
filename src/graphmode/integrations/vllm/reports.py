"""graphmode's log in vLLM's, and `graphmode.report()` of a server's processes: by signal, and by `collective_rpc`."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from importlib import import_module
from types import FrameType
from typing import Any

from graphmode.inspect.captures import log as core_log
from graphmode.inspect.report import Report, report
from graphmode.integrations.vllm.plugin import log

WORKER_EXTENSION = "graphmode.integrations.vllm.reports.ReportingWorker"
_QUIET = 10.0  # seconds without a capture after which start-up and first requests are taken to be over


def rank() -> int:
    """This worker's number among all of one engine; 0 before it has one."""
    state: Any = import_module("vllm.distributed.parallel_state")
    return int(state.get_world_group().rank) if state.model_parallel_is_initialized() else 0


def fallbacks(now: Report) -> int:
    """How often a reason to run outside a graph was met."""
    return sum(f.count for f in now.fallbacks)


def compiled(now: Report) -> bool:
    """Whether anything was compiled in this process."""
    return bool(now.lower_seconds or now.warmups or now.live_calls or now.captures)


class _ToVllm(logging.Handler):
    """Hands records on to vLLM's logger. All ranks capture the same, so that one of them tells it."""

    def emit(self, record: logging.LogRecord) -> None:
        if log.isEnabledFor(record.levelno) and (record.levelno > logging.INFO or rank() == 0):
            log.handle(record)


def route_log() -> None:
    """Makes vLLM's log show graphmode's, unless somebody configured that logger."""
    if not core_log.handlers:
        core_log.addHandler(_ToVllm())
        core_log.setLevel(log.getEffectiveLevel())
        core_log.propagate = False


class Asked:
    """Whether somebody asked since last time. No lock: a signal's handler may interrupt its own thread anywhere."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Called by the handler."""
        self._asked = True

    def take(self) -> bool:
        """Called by the thread that answers."""
        asked, self._asked = self._asked, False
        return asked


def asked_by_signal() -> Asked:
    """Told of SIGUSR1 from now on. A handler that Python knows of stays in its place."""
    asked = Asked()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.ask()

    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, ask)
    return asked


def log_report(now: Report) -> None:
    """The whole report, in the log."""
    if compiled(now):
        log.info("graphmode's report, rank %d:\n%s", rank(), now)
    else:
        log.info("graphmode compiled nothing in this process; workers do")


class Summaries:
    """One line when captures have come to rest, one at the end, and one for each new reason or note."""

    def __init__(self) -> None:
        self._last: tuple[int, int] = (0, 0)  # captures, reasons and notes
        self._changed = time.monotonic()
        self._told: set[str] | None = None

    def see(self, now: Report) -> None:
        """Called from time to time."""
        state = (now.captures, len(now.fallbacks) + len(now.notes))
        if state != self._last:
            self._last, self._changed = state, time.monotonic()
        reasons = {f.reason for f in now.fallbacks} | now.notes.keys()
        if state == (0, 0) or time.monotonic() - self._changed < _QUIET:
            return
        if self._told is None or reasons - self._told:
            self._told = reasons | (self._told or set())
            self._tell(now)

    def end(self, now: Report) -> None:
        """Called when the process ends in an orderly way."""
        if now.captures or now.fallbacks or now.notes:
            self._tell(now)

    def _tell(self, now: Report) -> None:
        if rank() == 0:
            log.log(logging.WARNING if now.fallbacks else logging.INFO, "%s", Summary(now))


@dataclasses.dataclass(frozen=True)
class Summary:
    """A report in one line."""

    report: Report

    def __str__(self) -> str:
        r = self.report
        counts: dict[str, int] = {}
        for f in r.fallbacks:
            counts[f.reason] = counts.get(f.reason, 0) + f.count
        outside = "; ".join(f"{n} times: {reason}" for reason, n in counts.items()) or "nothing"
        notes = "".join(f". Note, {n} times: {note}" for note, n in r.notes.items())
        return (
            f"{r.graphs} graphs in {r.bytes.total:,} bytes (arena {r.bytes.arena:,}, constants {r.bytes.fixed:,}), "
            f"{r.captures} captures in {r.capture_seconds:.2f} s after {r.lower_seconds:.2f} s of lowering, "
            f"{r.evictions} evictions, {r.replays:,} replays. Outside graphs: {outside}{notes}"
        )


class ReportingWorker:
    """What vLLM's worker class is extended by (`worker_extension_cls`)."""

    def graphmode_report(self) -> dict[str, Any]:
        """`graphmode.report()` of this worker as plain data, and as text under `text`."""
        now = report()
        return {"rank": rank(), **dataclasses.asdict(now), "text": str(now)}
