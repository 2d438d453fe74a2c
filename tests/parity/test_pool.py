"""Shows that a crash or a hang is recorded for its operator, and that the sweep goes on.

Owns the tests of the pool and of the report made from its rows.
"""

from __future__ import annotations

from .check import LISTED, REPLAYED
from .exceptions import EXCEPTIONS
from .pool import run_jobs
from .summary import stale_exceptions, summarise
from .sweep import OPS, jobs


def test_a_crash_and_a_hang_are_recorded_and_the_others_go_on() -> None:
    todo = [("add", "fp32"), ("mul", "fp32"), ("sub", "fp32"), ("neg", "fp32")]
    rows = run_jobs(todo, driver="crashes", processes=2, timeout=8)
    ended = {op: {row["kind"] for row in rows if row["op"] == op} for op, _ in todo}
    assert ended == {"add": {"crashed"}, "mul": {REPLAYED}, "sub": {"timed out"}, "neg": {REPLAYED}}
    crash = next(row for row in rows if row["kind"] == "crashed")
    assert "add/fp32/sample0" in crash["detail"] and not crash["passed"]
    text = summarise(rows, [], driver="crashes")
    assert "2 failures in 2 operators" in text and "crashed: 1" in text and "timed out: 1" in text


def test_an_exception_that_passes_is_found() -> None:
    names = list(EXCEPTIONS)
    assert stale_exceptions([{"op": name, "kind": LISTED} for name in names]) == []
    passing, needed = names[:2]
    kinds = [(passing, REPLAYED), (needed, LISTED), (needed, REPLAYED)]
    rows = [{"op": name, "kind": kind} for name, kind in kinds]
    assert stale_exceptions(rows) == [passing]


def test_shards_cover_every_operator_once() -> None:
    shards = [jobs(["fp32"], part, 5) for part in range(5)]
    assert sorted(job for shard in shards for job in shard) == sorted((name, "fp32") for name in OPS)
