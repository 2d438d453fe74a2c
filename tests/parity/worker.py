"""The process that runs operators for the pool: reads a job a line, answers with the job's rows.

Owns its side of the pipe; it may die at any time, and the pool then knows on which case.
"""

from __future__ import annotations

import json
import os
import sys

from .drivers import driver as driver_named
from .samples import Case
from .session import Driver, Session
from .sweep import sweep_op


class _Announcing:
    """Writes each case's name to a file before it starts, so that a crash can be laid to it."""

    def __init__(self, inner: Driver, mark: str) -> None:
        self._inner, self._mark = inner, mark
        self.name, self.grad_mode = inner.name, inner.grad_mode

    def start(self, case: Case) -> Session:
        with open(self._mark, "w") as mark:
            mark.write(case.name)
        return self._inner.start(case)


def work(driver_name: str, mark: str) -> None:
    """Serve jobs from stdin until it closes."""
    # Operators and libraries print; the pool's pipe must carry our lines only.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.chdir(os.path.dirname(mark))  # programs may write files
    driver = _Announcing(driver_named(driver_name), mark)
    print("ready", file=answers)
    for line in sys.stdin:
        name, tag = json.loads(line)
        rows = [{**result.as_row(), "passed": result.passed} for result in sweep_op(name, tag, driver)]
        print(json.dumps(rows), file=answers)
    # A Python that has compiled takes seconds to take itself apart.
    os._exit(0)
