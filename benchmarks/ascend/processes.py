"""A process over the emulated NPU that is asked line by line: so that several can live side by side and take turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

MARK = "FOUND "


class ProcessFailed(Exception):
    """It came to no end, or did not answer in time; the message has what it said last."""


def tell(found: Mapping[str, Any]) -> None:
    """Answers, from inside such a process."""
    print(MARK + json.dumps(found), flush=True)


class Process:
    """One process; each of its answers is a line of JSON.

    Args:
        command: the program and its arguments
        environment: variables for it besides those of this process; None takes one away
        limit_s: it is ended after so many seconds

    Raises:
        ProcessFailed: from every method but `close`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str | None], limit_s: float) -> None:
        from ascend_sim import runtime

        own = {"ASCEND_SIM": "1", "LD_LIBRARY_PATH": str(runtime.FOLDER), **environment}
        inherited = {k: v for k, v in os.environ.items() if k not in own}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=inherited | {k: v for k, v in own.items() if v is not None},
        )
        self._said: list[str] = []
        self._limit_s, self._too_late = limit_s, False
        self._limit = threading.Timer(limit_s, self._stop)
        self._limit.daemon = True
        self._limit.start()

    def _stop(self) -> None:
        self._too_late = True
        self._process.kill()

    def answer(self) -> dict[str, Any]:
        """The next answer, whenever it comes."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
            self._said.append(line)
        self._process.wait()
        self._errors.seek(0)
        late = f"\nError: not done after {self._limit_s:.0f} s" if self._too_late else ""
        raise ProcessFailed("".join(self._said)[-2000:] + self._errors.read()[-6000:] + late)

    def ask(self, **what: Any) -> dict[str, Any]:
        """One question and its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last tells why
            print(json.dumps(what), file=self._process.stdin, flush=True)
        return self.answer()

    def end(self) -> dict[str, Any]:
        """Asks no more; what it has to say at the end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
