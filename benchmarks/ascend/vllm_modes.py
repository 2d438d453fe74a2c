"""Modes of vllm-ascend over the emulated NPU, an engine and a process for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import Process

HERE = Path(__file__).parent
SIZES = list(range(1, 9))
LIMIT_S = 1800


def _graphs(mode: str | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"cudagraph_capture_sizes": SIZES}
    return {"compilation_config": asked if mode is None else {**asked, "cudagraph_mode": mode}}


# Every start compiles anew: one of vllm-ascend's own that finds what an earlier one left in vLLM's cache fails here.
_EACH = {"VLLM_DISABLE_COMPILE_CACHE": "1"}
OURS = {"VLLM_PLUGINS": "graphmode_ascend"}
MODES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {  # arguments of vLLM's engine, environment
    "eager": ({"enforce_eager": True}, {}),
    "ACLGraph, pieces": (_graphs("PIECEWISE"), {}),
    "ACLGraph, whole": (_graphs("FULL_DECODE_ONLY"), {}),
    "graphmode, pieces": (_graphs("PIECEWISE"), OURS),
    "graphmode, whole": (_graphs(None), OURS),
}


def engine(
    mode: str, model: str, further: dict[str, Any] | None = None, environment: dict[str, str] | None = None
) -> Process:
    """An engine that starts in a process of its own; its first answer comes when it has started.

    Args:
        mode: a name of MODES
        model: a name that `vllm_engine.folder_of` knows
        further: arguments of vLLM's engine
        environment: variables of its process
    """
    chosen, variables = MODES[mode]
    arguments = {**chosen, **(further or {})}
    if "compilation_config" in chosen and "compilation_config" in (further or {}):
        arguments["compilation_config"] = chosen["compilation_config"] | (further or {})["compilation_config"]
    command = [sys.executable, str(HERE / "vllm_engine.py"), json.dumps({"model": model, "engine": arguments})]
    own = {"VLLM_PLUGINS": None, **_EACH, **variables, **(environment or {})}
    return Process(command, own, LIMIT_S)


def found_by(
    mode: str,
    model: str,
    batches: Sequence[int],
    prompts: int,
    tokens: int,
    engine_arguments: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What one engine showed: answers and steps by batch size, captures, graph mode and the device at the end.

    Raises:
        ProcessFailed: it came to no end.
    """
    with engine(mode, model, engine_arguments, environment) as asked:
        found: dict[str, Any] = {**asked.answer(), "answers": {}, "steps": {}}
        for batch in batches:
            block = asked.ask(batch=batch, prompts=prompts, tokens=tokens)
            found["answers"][str(batch)], found["steps"][str(batch)] = block["answers"], block["steps"]
        return found | asked.end()
