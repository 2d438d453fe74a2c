"""A case that crashes or hangs costs one row; the others of its batch are run all the same."""

import sys
from pathlib import Path

import pytest
from proof.row import Row, Verdict
from proof.worker import run_isolated

MODELS = Path(__file__).parent

# A child that answers as the sweep's own does, and whose case names say what to do.
CHILD = f"""
import os, sys, time
sys.path.insert(0, {str(MODELS)!r})
from proof.row import Row, Verdict
from proof.worker import answer

def trial(name):
    if name == "crash":
        print("a last word", file=sys.stderr, flush=True)
        os._exit(11)
    if name == "hang":
        time.sleep(600)
    if name == "chatty":
        print("models may print")
    return Row(name, "net", verdict=Verdict.IDENTICAL)

answer(sys.argv[1:], trial)
"""


def run(*names: str, timeout: float = 60.0) -> list[Row]:
    cases = [(name, "net") for name in names]
    return list(run_isolated(cases, "eager", timeout, (sys.executable, "-c", CHILD)))


def test_rows_come_in_order() -> None:
    names = ["a", "chatty", "b"]
    assert [(row.name, row.verdict) for row in run(*names)] == [(name, Verdict.IDENTICAL) for name in names]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_crash_costs_one_row(bad: int) -> None:
    names = ["a", "b", "c"]
    names[bad] = "crash"
    rows = run(*names)
    assert [row.name for row in rows] == names
    assert [row.verdict is Verdict.CRASHED for row in rows] == [name == "crash" for name in names]
    assert rows[bad].detail == "exit status 11: a last word"


def test_a_hang_costs_one_row() -> None:
    rows = run("a", "hang", "b", timeout=5.0)
    assert [row.verdict for row in rows] == [Verdict.IDENTICAL, Verdict.TIMED_OUT, Verdict.IDENTICAL]
