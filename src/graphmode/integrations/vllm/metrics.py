"""graphmode's counters in vLLM's `/metrics`. Nothing here runs in a step: counts are read, never pushed.

A process that compiles writes them once a second to two files, in the form in which prometheus_client's own processes
share theirs; the server reads the files of all its processes when it is scraped.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY, mmap_dict, multiprocess

from graphmode.inspect.report import Report, report
from graphmode.integrations.vllm import reports
from graphmode.integrations.vllm.plugin import log

_FOLDER = "GRAPHMODE_VLLM_METRICS"  # where the processes of one server meet; they inherit it
_OF_VLLM = "PROMETHEUS_MULTIPROC_DIR"  # where they meet if vLLM's do: several API servers, or set by the user
_PERIOD = 1.0  # seconds

_Values: Any = mmap_dict.MmapedDict
_Collector: Any = multiprocess.MultiProcessCollector


@dataclass(frozen=True)
class Series:
    """One metric."""

    name: str  # as Prometheus knows it, without a counter's `_total`
    kind: str  # the start of a file's name, which says how values of several processes are put together
    meaning: str
    value: Callable[[Report], float]

    def key(self, rank: int) -> str:
        """Its key in a file."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        key: str = mmap_dict.mmap_key(self.name, name, ["rank"], [str(rank)], self.meaning)
        return key


def _counter(name: str, meaning: str, value: Callable[[Report], float]) -> Series:
    return Series(f"graphmode_{name}", "counter", meaning, value)


def _gauge(name: str, meaning: str, value: Callable[[Report], float]) -> Series:
    return Series(f"graphmode_{name}", "gauge_livesum", meaning, value)


SERIES = (
    _gauge("graphs", "Graphs held now.", lambda r: r.graphs),
    _gauge("arena_bytes", "Bytes of the one block that all graphs' intermediates share.", lambda r: r.bytes.arena),
    _gauge("constant_bytes", "Bytes of constants that graphs hold.", lambda r: r.bytes.fixed),
    _counter("captures", "Graphs captured.", lambda r: r.captures),
    _counter("replays", "Calls that replayed a graph.", lambda r: r.replays),
    _counter("warmups", "Calls that ran as they are because their size was new, or a rehearsal.", lambda r: r.warmups),
    _counter("live_calls", "Calls that ran outside graphs, for a reason.", lambda r: r.live_calls),
    _counter("breaks", "Ops that ran between two graphs of a call.", lambda r: r.breaks),
    _counter("fallbacks", "Times that a reason to run outside a graph was met.", reports.fallbacks),
    _counter(
        "evictions", "Graphs dropped: too many, over the byte cap, or their buffers moved.", lambda r: r.evictions
    ),
    _counter("lowering_seconds", "Seconds spent on lowering programs.", lambda r: r.lower_seconds),
    _counter("capture_seconds", "Seconds spent on captures.", lambda r: r.capture_seconds),
)


class Files:
    """This process's values, where the server finds them."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._keys = [(s, s.key(rank)) for s in SERIES]
        # vLLM's own series may have files named by the bare process id in the same folder.
        self._paths = {kind: folder / f"{kind}_graphmode{os.getpid()}.db" for kind in {s.kind for s in SERIES}}
        self._values = {kind: _Values(str(path.with_suffix(".new"))) for kind, path in self._paths.items()}
        self._seen = False

    def write(self, now: Report) -> None:
        """Puts the values of a report in the place of the last ones."""
        for series, key in self._keys:
            self._values[series.kind].write_value(key, float(series.value(now)), 0.0)
        if not self._seen:  # a reader must not find a file without its head
            for path in self._paths.values():
                path.with_suffix(".new").rename(path)
            self._seen = True

    def end(self) -> None:
        """A process that is gone holds nothing; what it counted stays."""
        for kind, path in self._paths.items():
            if kind != "counter":
                path.unlink(missing_ok=True)


class _Watch:
    """The thread that writes, in a process that may compile."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: Files | None = None
        self._writes = True
        self._summaries = reports.Summaries()
        self._asked = reports.asked_by_signal()
        self._lock = threading.Lock()
        atexit.register(self._end)
        threading.Thread(target=self._run, name="graphmode metrics", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_PERIOD)
            now = report()
            if self._asked.take():
                reports.log_report(now)
            if reports.compiled(now):
                self._summaries.see(now)
                if self._writes:
                    self._try_to_write(now)

    def _try_to_write(self, now: Report) -> None:
        try:
            self._write(now)
        except OSError as error:
            self._writes = False
            log.warning("graphmode's counts are not in /metrics: %s", error)

    def _write(self, now: Report) -> None:
        folder = os.environ.get(_OF_VLLM) or os.environ[_FOLDER]
        with self._lock:
            if self._files is None:
                self._files = Files(Path(folder), reports.rank())
            self._files.write(now)

    def _end(self) -> None:
        if os.getpid() != self._process:
            return  # a fork's exit is not ours
        now = report()
        if reports.compiled(now):
            self._summaries.end(now)
        if self._files is not None:
            with self._lock:
                self._files.end()


_folder: str | None = None  # made by this process
_watch: _Watch | None = None


def serve() -> None:
    """Lets the counts of processes that are started from now on be scraped in this one.

    Called where vLLM's configuration is complete, which is before it starts any.
    """
    global _folder
    if _folder is not None:
        return
    _folder = os.environ[_FOLDER] = tempfile.mkdtemp(prefix="graphmode-metrics-")
    atexit.register(_remove, _folder, os.getpid())
    _Collector(REGISTRY, _folder)
    watch()


def watch() -> None:
    """Entry point of `vllm.general_plugins`, in every process of vLLM: counts from now on, where graphmode compiles."""
    global _watch
    # A process that was not started by vLLM may have the variable from a server it runs under, which is not its own.
    if _watch is None and (_folder is not None or (_FOLDER in os.environ and multiprocessing.parent_process())):
        reports.route_log()
        _watch = _Watch()


def _remove(folder: str, made_by: int) -> None:
    if os.getpid() == made_by:
        shutil.rmtree(folder, ignore_errors=True)
