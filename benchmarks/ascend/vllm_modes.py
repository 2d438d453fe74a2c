"""Modes of vllm-ascend over the emulated NPU, an engine and a process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = list(range(1, 9))


class EngineFailed(Exception):
    """An engine did not come to its end; the message has what it said last."""


def _graphs(mode: str | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"cudagraph_capture_sizes": SIZES}
    return {"compilation_config": asked if mode is None else {**asked, "cudagraph_mode": mode}}


OURS = {"VLLM_PLUGINS": "graphmode_ascend"}
MODES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # arguments of vLLM's engine, environment
    "eager": ({"enforce_eager": True}, {}),
    "ACLGraph, pieces": (_graphs("PIECEWISE"), {}),
    "ACLGraph, whole": (_graphs("FULL_DECODE_ONLY"), {}),
    "graphmode, pieces": (_graphs("PIECEWISE"), OURS),
    "graphmode, whole": (_graphs(None), OURS),
}


def found_by(
    mode: str, engine: dict[str, Any] | None = None, environment: dict[str, str] | None = None, **asked: Any
) -> dict[str, Any]:
    """What an engine showed that was asked as `vllm_engine.main` says, with further arguments of vLLM's engine.

    Raises:
        EngineFailed: it came to no end.
    """
    from ascend_sim import runtime

    chosen, variables = MODES[mode]
    arguments = {**chosen, **(engine or {})}
    if "compilation_config" in chosen and "compilation_config" in (engine or {}):
        arguments["compilation_config"] = chosen["compilation_config"] | (engine or {})["compilation_config"]
    own = {"ASCEND_SIM": "1", "LD_LIBRARY_PATH": str(runtime.FOLDER), **variables, **(environment or {})}
    inherited = {k: v for k, v in os.environ.items() if k != "VLLM_PLUGINS"}
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_engine.py"), json.dumps({**asked, "engine": arguments})],
        capture_output=True,
        text=True,
        timeout=1800,
        env=inherited | own,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise EngineFailed(done.stdout[-2000:] + done.stderr[-6000:])
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    return found
