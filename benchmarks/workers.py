"""Fresh worker processes: the parent calls methods of one object that lives in the child, over a pipe.

Knows nothing of what is measured. One process per peer keeps memory and compile state of the peers apart.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any


class WorkerFailed(RuntimeError):
    """The child raised or died; the text holds its traceback, or its exit code and the end of its output."""

    @property
    def reason(self) -> str:
        """The last line of the text: what to print in a table cell."""
        return str(self).strip().splitlines()[-1]


class Worker:
    """One object in a process of its own.

    `target` is `folder/module.py:Class`; the other arguments are the class's. The child starts with an empty
    Inductor cache of its own, so that a first call takes what it takes on a machine that never ran it.
    """

    def __init__(self, target: Path | str, *args: Any, timeout_s: float = 900, **env: str) -> None:
        file, _, name = str(target).rpartition(":")
        self.timeout_s = timeout_s
        self.scratch = Path(tempfile.mkdtemp(prefix="graphmode-bench-"))
        self.pipe, theirs = Pipe()
        settings = {
            "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        with open(self.scratch / "output", "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), str(Path(file).resolve()), name],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings, **env},
            )
        theirs.close()
        try:
            self.call("__init__", *args)
        except WorkerFailed:
            self.close()
            raise

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the child's object and returns its result.

        Raises WorkerFailed when the method raises, the process dies or `timeout_s` passes.
        """
        try:
            self.pipe.send((method, args, kwargs))
            if not self.pipe.poll(self.timeout_s):
                raise WorkerFailed(f"{method} gave no answer within {self.timeout_s:.0f} s\n{self.output()}")
            succeeded, result = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self.process.wait()
            raise WorkerFailed(f"{self.output()}\nworker died in {method} with exit code {code}") from None
        if not succeeded:
            raise WorkerFailed(result)
        return result

    def output(self) -> str:
        """The last 2,000 characters that the child printed."""
        return (self.scratch / "output").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        self.pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(pipe: Connection, file: Path, name: str) -> None:
    """The child's loop: run the named method, answer with its result or its traceback."""
    sys.path.insert(0, str(file.parent))
    served: Any = None
    with suppress(EOFError):
        while True:
            method, args, kwargs = pipe.recv()
            try:
                if method == "__init__":
                    served = getattr(importlib.import_module(file.stem), name)(*args)
                    result = None
                else:
                    result = getattr(served, method)(*args, **kwargs)
            except Exception:
                pipe.send((False, traceback.format_exc()))
            else:
                pipe.send((True, result))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])
