"""Graphs and key-value cache share vLLM's budget: the cap on graphs, and what the cache keeps of eager's."""

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

from graphmode.integrations.vllm import memory

pytestmark = pytest.mark.slow

MIB = 2**20
GIVEN = 256 * MIB
CAP = "GRAPHMODE_MAX_BYTES"

ENGINE = """
import json, os, sys, tempfile
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
from pathlib import Path
from models import MODELS, register_loader
from vllm import LLM, SamplingParams
from vllm.utils.cpu_resource_utils import get_memory_node_info
given = json.loads(sys.argv[1])
given["gpu_memory_utilization"] = given.pop("gib") * 2**30 / get_memory_node_info().total_memory
with tempfile.TemporaryDirectory() as folder:
    MODELS["llama"].write(Path(folder), {})
    engine = LLM(model=folder, load_format=register_loader(), skip_tokenizer_init=True,
                 max_model_len=256, max_num_seqs=8, enable_prefix_caching=False, **given)
how = SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False)
for tokens in (2,) * 3 + (200,) * 18:  # a size of prompts has a graph after sixteen steps
    engine.generate([{"prompt_token_ids": [5] * tokens}] * 4, how, use_tqdm=False)
import graphmode
from vllm.config import CompilationMode
def state(worker):
    caches = worker.model_runner.kv_caches
    return sum(c.nbytes for c in caches), worker.requested_cpu_memory
(cache, budget), = engine.collective_rpc(state)
report = graphmode.report()
print("FOUND", json.dumps({
    "cache": cache, "budget": budget, "arena": report.bytes.arena, "fixed": report.bytes.fixed,
    "graphs": report.graphs, "replays": report.replays, "reasons": [f.reason for f in report.fallbacks],
    "cap": os.environ.get("GRAPHMODE_MAX_BYTES"),
}))
"""


@functools.cache
def run(given: str) -> dict[str, Any]:
    """One engine in a process of its own; `given` are its arguments as JSON."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VLLM_CPU_KVCACHE_SPACE", CAP)}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", ENGINE, given]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    return found


def engine(**given: Any) -> dict[str, Any]:
    return run(json.dumps({"gib": 2, **given}, sort_keys=True))


def test_graphs_have_a_cap_that_is_taken_from_the_cache() -> None:
    ours, eager = engine(gib=4.7), engine(gib=4.7, enforce_eager=True)  # what tracing takes is the same for any
    assert ours["cache"] >= 0.98 * eager["cache"]
    cap = int(ours["cap"])
    assert 0 < cap <= ours["budget"] / memory.SHARE
    assert ours["graphs"] > 0 and ours["replays"] > 0 and 0 < ours["arena"] + ours["fixed"] <= cap
    assert eager["cap"] is None


def test_a_cap_that_is_given_is_taken_from_the_cache_whole() -> None:
    given = engine(additional_config={"graphmode": {"max_bytes": GIVEN}})
    usual = engine()
    assert int(given["cap"]) == GIVEN
    less = usual["cache"] + int(usual["cap"]) - given["cache"]
    assert abs(less - GIVEN) < 48 * MIB  # two processes are not of the same size to the byte


def test_a_size_over_the_cap_runs_live_and_is_told() -> None:
    low = engine(additional_config={"graphmode": {"max_bytes": 200_000}})
    assert 0 < low["arena"] + low["fixed"] <= 200_000 and low["graphs"] > 0
    assert any("max_bytes" in reason for reason in low["reasons"])


def test_a_cache_of_a_given_size_keeps_it() -> None:
    fixed = engine(kv_cache_memory_bytes=200 * MIB)
    assert 199 * MIB < fixed["cache"] <= 200 * MIB
    assert int(fixed["cap"]) == memory.ON_TOP and fixed["graphs"] > 0


def test_a_cap_that_leaves_nothing_for_the_cache_stops_the_engine() -> None:
    with pytest.raises(AssertionError, match="give a smaller max_bytes, or a larger --gpu-memory-utilization"):
        engine(additional_config={"graphmode": {"max_bytes": 2**36}})


def test_a_derived_cap_is_not_taken_for_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP, "0")
    monkeypatch.delenv(CAP)
    monkeypatch.setenv(memory._DERIVED, "0")
    monkeypatch.delenv(memory._DERIVED)
    assert memory.reserve(10 * MIB) == (10 * MIB, True)
    assert memory.reserve(5 * MIB) == (5 * MIB, True)  # the next engine, in this process or one that it starts
    monkeypatch.setenv(CAP, "777")
    assert memory.reserve(5 * MIB) == (777, False)
    monkeypatch.setenv(CAP, "0")
    assert memory.reserve(5 * MIB) == (0, False)  # the user wants none


def test_a_second_engine_has_its_share_beside_what_the_first_one_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CAP, memory._DERIVED):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setattr(memory.ledger, "fixed_bytes", lambda: 3 * MIB)
    assert memory.reserve(5 * MIB) == (5 * MIB, True) and int(os.environ[CAP]) >= 8 * MIB
