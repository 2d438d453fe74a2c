"""vLLM's offline engine in graph mode against the same engine without: equal tokens and log-probabilities."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make install-vllm installs it")

HERE = Path(__file__).parent
GRAPHS: dict[str, Any] = {}
EAGER = {"enforce_eager": True}


@functools.cache
def run(model: str, engine: str, **environment: str) -> dict[str, Any]:
    """One engine in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "engine.py"), json.dumps({"model": model, "engine": json.loads(engine)})],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    return found


@pytest.mark.parametrize("model", ["llama", pytest.param("qwen2", marks=pytest.mark.slow), "gemma3"])
def test_graph_mode_gives_eager_s_tokens_and_log_probabilities(model: str) -> None:
    ours, eager = run(model, json.dumps(GRAPHS)), run(model, json.dumps(EAGER))
    assert ours["answers"] == eager["answers"]
    assert ours["report"]["graphs"] > 0 and ours["report"]["replays"] > 50
    assert ours["report"]["fallbacks"] == [] and ours["report"]["notes"] == {}


@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_no_layer_s_attention_is_python_in_a_replay(model: str) -> None:
    ours = run(model, json.dumps(GRAPHS))
    assert ours["direct_attention"] == ours["report"]["graphs"] and ours["python_attention"] == 0


def test_poisoned_memory_changes_nothing() -> None:
    ours = run("llama", json.dumps({"additional_config": {"graphmode": {"poison": True}}}))
    assert ours["answers"] == run("llama", json.dumps(EAGER))["answers"]


def test_the_key_works_without_the_plug_in() -> None:
    asked = {"compilation_config": {"mode": 2, "backend": "graphmode", "custom_ops": ["all"]}}
    ours = run("llama", json.dumps(asked), VLLM_PLUGINS="")
    assert ours["answers"] == run("llama", json.dumps(EAGER))["answers"]
    assert ours["report"]["replays"] > 50


def test_enforce_eager_compiles_nothing() -> None:
    eager = run("llama", json.dumps(EAGER))
    assert eager.get("report", {"graphs": 0})["graphs"] == 0


def test_a_wrong_option_stops_the_engine_with_the_right_ones() -> None:
    with pytest.raises(AssertionError, match="unknown option 'max_grphs'; the options are"):
        run("llama", json.dumps({"additional_config": {"graphmode": {"max_grphs": 3}}}))
