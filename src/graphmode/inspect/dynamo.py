"""Where Dynamo itself left the graph: it splits a model at what it can't trace, or leaves a whole function to Python.

Owns what was noticed since the last reset; the frames to look at are told by `runtime/frames.py`.
"""

from __future__ import annotations

import linecache
import threading
from pathlib import Path
from types import CodeType

from torch._dynamo.utils import get_compilation_metrics, graph_break_reasons

from graphmode.inspect.counters import Fallback
from graphmode.program.lines import is_users

_ELSEWHERE = "recompile limit exceeded"  # counted call by call, in runtime/frames.py


class DynamoBreaks:
    """Splits and skipped functions among the frames compiled for us, each with its line; counts are of traces."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: dict[str, CodeType] = {}
        self._splits_read = 0
        self._last_metric: object = None
        self._found: dict[tuple[str, str], Fallback] = {}

    def compiling(self, compile_id: str, code: CodeType) -> None:
        """Notes that Dynamo is about to compile a frame for us."""
        with self._lock:
            self._read()
            self._frames[compile_id] = code

    def found(self) -> list[Fallback]:
        """Everything noticed since the last reset."""
        with self._lock:
            self._read()
            return list(self._found.values())

    def forget(self) -> None:
        """Starts anew."""
        with self._lock:
            self._read()
            self._found.clear()

    def _read(self) -> None:
        if self._frames:
            self._read_splits()
            self._read_skipped()
        else:
            self._splits_read = len(graph_break_reasons)
            self._last_metric = next(iter(reversed(get_compilation_metrics())), None)

    def _read_splits(self) -> None:
        if len(graph_break_reasons) < self._splits_read:  # Dynamo was reset
            self._splits_read = 0
        for split in graph_break_reasons[self._splits_read :]:
            if split.user_stack:
                where = split.user_stack[-1]
                self._note("split the model", split.reason, where.filename, where.lineno or 0, where.name)
        self._splits_read = len(graph_break_reasons)

    def _read_skipped(self) -> None:
        metrics = list(get_compilation_metrics())
        seen = next((i for i in reversed(range(len(metrics))) if metrics[i] is self._last_metric), -1)
        for m in metrics[seen + 1 :]:
            code = self._frames.pop(str(m.compile_id), None)
            if code is None or m.has_guarded_code or _ELSEWHERE in (m.fail_reason or ""):
                continue
            file, line = m.fail_user_frame_filename, m.fail_user_frame_lineno
            if file and not is_users(file):  # as under a default device
                file = line = None
            why = m.fail_reason or "nothing in it that computes"
            self._note(
                "left a function to Python", why, file or code.co_filename, line or code.co_firstlineno, code.co_name
            )
        if metrics:
            self._last_metric = metrics[-1]

    def _note(self, what: str, why: str, file: str, number: int, function: str) -> None:
        first = next((text.strip() for text in why.splitlines() if text.strip()), why)
        line = f"{Path(file).name}:{number} in {function}: {linecache.getline(file, number).strip()}"
        reason = f"Dynamo {what}: {first}"
        entry = self._found.setdefault((reason, line), Fallback(reason, None, line))
        entry.count += 1


dynamo_breaks = DynamoBreaks()
