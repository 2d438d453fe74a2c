"""Modes of vllm-ascend over the emulated NPU, an engine and a process for each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = list(range(1, 9))
LIMIT_S = 1800


class EngineFailed(Exception):
    """An engine did not come to its end; the message has what it said last."""


def _graphs(mode: str | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"cudagraph_capture_sizes": SIZES}
    return {"compilation_config": asked if mode is None else {**asked, "cudagraph_mode": mode}}


# A shorter start: vllm-ascend traces the patterns of its fusions on the device, those of quantised models as well.
THEIRS = {"additional_config": {"ascend_compilation_config": {"fuse_norm_quant": False}}}
OURS = {"VLLM_PLUGINS": "graphmode_ascend"}
MODES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # arguments of vLLM's engine, environment
    "eager": ({"enforce_eager": True}, {}),
    "ACLGraph, pieces": (_graphs("PIECEWISE") | THEIRS, {}),
    "ACLGraph, whole": (_graphs("FULL_DECODE_ONLY") | THEIRS, {}),
    "graphmode, pieces": (_graphs("PIECEWISE"), OURS),
    "graphmode, whole": (_graphs(None), OURS),
}


class Engine:
    """An engine in a process of its own.

    Args:
        mode: a name of MODES
        model: a name that `vllm_engine.folder_of` knows
        engine: further arguments of vLLM's engine
        environment: variables of its process

    Raises:
        EngineFailed: also from every method: it came to no end, or did not answer in time.
    """

    def __init__(
        self,
        mode: str,
        model: str,
        engine: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        from ascend_sim import runtime

        chosen, variables = MODES[mode]
        arguments = {**chosen, **(engine or {})}
        if "compilation_config" in chosen and "compilation_config" in (engine or {}):
            arguments["compilation_config"] = chosen["compilation_config"] | (engine or {})["compilation_config"]
        own = {"ASCEND_SIM": "1", "LD_LIBRARY_PATH": str(runtime.FOLDER), **variables, **(environment or {})}
        inherited = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "vllm_engine.py"), json.dumps({"model": model, "engine": arguments})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=inherited | own,
        )
        self._said: list[str] = []
        self._limit = threading.Timer(LIMIT_S, self._process.kill)
        self._limit.daemon = True
        self._limit.start()
        try:
            self.started = self._found()
        except BaseException:
            self.close()
            raise

    def ask(self, batch: int, prompts: int, tokens: int) -> dict[str, Any]:
        """Answers to so many prompts, a batch at a time, and what the decode steps took."""
        assert self._process.stdin is not None
        asked = json.dumps({"batch": batch, "prompts": prompts, "tokens": tokens})
        with contextlib.suppress(BrokenPipeError):  # what it said last tells why
            print(asked, file=self._process.stdin, flush=True)
        return self._found()

    def end(self) -> dict[str, Any]:
        """What the device held at last."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._found()

    def close(self) -> None:
        """Ends the process."""
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _found(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("FOUND "):
                found: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
                return found
            self._said.append(line)
        self._process.wait()
        self._errors.seek(0)
        raise EngineFailed("".join(self._said)[-2000:] + self._errors.read()[-6000:])


def found_by(
    mode: str,
    model: str,
    batches: Sequence[int],
    prompts: int,
    tokens: int,
    engine: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What one engine showed: answers and steps by batch size, captures, graph mode and the device at the end.

    Raises:
        EngineFailed: it came to no end.
    """
    with Engine(mode, model, engine, environment) as asked:
        found: dict[str, Any] = {**asked.started, "answers": {}, "steps": {}}
        for batch in batches:
            block = asked.ask(batch, prompts, tokens)
            found["answers"][str(batch)], found["steps"][str(batch)] = block["answers"], block["steps"]
        return found | asked.end()
