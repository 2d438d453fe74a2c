"""vllm-ascend's engine: the same tokens in every mode, and graphmode's steps no dearer than vllm-ascend's own."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from processes import ProcessFailed
from vllm_modes import MODES, found_by

QUICK = {"model": "llama", "batches": [1, 3, 8], "prompts": 8, "tokens": 10}
SMALL = {"batches": [1, 3], "prompts": 4, "tokens": 6}
SMOLLM2 = {"model": "smollm2", "batches": list(range(1, 9)), "prompts": 50, "tokens": 8}


@functools.cache
def run(mode: str, asked: str) -> dict[str, Any]:
    """One engine in a process of its own."""
    return found_by(mode, **json.loads(asked))


def asked(mode: str, what: dict[str, Any] = QUICK, **more: Any) -> dict[str, Any]:
    return run(mode, json.dumps({**what, **more}))


@pytest.mark.parametrize("mode", [m for m in MODES if m != "eager"])
def test_tokens_are_eager_s(mode: str) -> None:
    assert asked(mode)["answers"] == asked("eager")["answers"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [m for m in MODES if m != "eager"])
def test_tokens_of_smollm2_are_eager_s(mode: str) -> None:
    assert asked(mode, SMOLLM2)["answers"] == asked("eager", SMOLLM2)["answers"]


@pytest.mark.parametrize("model", ["deepseek_v2", pytest.param("deepseek_v3", marks=pytest.mark.slow)])
def test_latent_attention_and_experts_give_eager_s_tokens(model: str) -> None:
    ours = asked("graphmode, whole", {**SMALL, "model": model})
    assert ours["answers"] == asked("eager", {**SMALL, "model": model})["answers"]
    assert ours["graphmode"]["graphs"] == 8 and ours["graphmode"]["fallbacks"] == {}


@pytest.mark.parametrize("model", ["llama", "deepseek_v2"])
def test_batches_that_are_padded_to_a_size_give_eager_s_tokens(model: str) -> None:
    padded = {**SMALL, "model": model, "batches": [1, 3, 5], "prompts": 5}
    ours = asked(
        "graphmode, whole", padded, engine_arguments={"compilation_config": {"cudagraph_capture_sizes": [4, 8]}}
    )
    assert ours["answers"] == asked("eager", padded)["answers"]
    assert ours["graphmode"]["graphs"] == 2 and ours["graphmode"]["fallbacks"] == {} == ours["graphmode"]["notes"]


def test_graphs_of_mixed_steps_give_eager_s_tokens() -> None:
    """A size is captured for as many requests as it has tokens, and serves fewer, with prompts among them."""
    mixed = {**SMALL, "model": "llama", "batches": [1, 2, 5], "prompts": 10}
    graphs = {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [4, 8, 16]}
    ours = asked("graphmode, whole", mixed, engine_arguments={"compilation_config": graphs})
    assert ours["mode"] == "FULL" and ours["answers"] == asked("eager", mixed)["answers"]
    assert ours["graphmode"]["graphs"] == 3 and ours["graphmode"]["fallbacks"] == {} == ours["graphmode"]["notes"]


@pytest.mark.parametrize("kind", ["whole", "pieces"])
def test_a_step_calls_the_runtime_no_more_often_than_vllm_ascend_s(kind: str) -> None:
    def calls(steps: dict[str, Any]) -> float:
        # How often the allocator of pinned memory asks whether a copy is over depends on when it asks.
        return sum(n for name, n in steps["by_call"].items() if name != "aclrtQueryEventStatus")

    ours, theirs = asked(f"graphmode, {kind}")["steps"], asked(f"ACLGraph, {kind}")["steps"]
    for batch, steps in ours.items():
        assert calls(steps) <= calls(theirs[batch]), (steps["by_call"], theirs[batch]["by_call"])


def test_every_decode_step_is_one_graph_and_nothing_is_outside() -> None:
    ours = asked("graphmode, whole")
    assert ours["mode"] == "FULL_DECODE_ONLY"
    assert ours["graphmode"]["graphs"] == 8 and ours["graphmode"]["fallbacks"] == {}
    for steps in ours["steps"].values():
        assert steps["by_call"]["aclmdlRIExecuteAsync"] == 1


@pytest.mark.parametrize("model", ["llama", "deepseek_v2"])
def test_a_step_waits_for_no_other_and_attention_for_no_event(model: str) -> None:
    ours = asked("graphmode, whole", QUICK if model == "llama" else {**SMALL, "model": model})
    for steps in ours["steps"].values():
        assert steps["by_call"]["aclmdlRICaptureTaskUpdateBegin"] > 0  # attention's lengths are updated
        assert not {"aclrtValueWrite", "aclrtSynchronizeStreamWithTimeout"} & steps["by_call"].keys()
    assert ours["graphmode"]["notes"] == {}


def test_whole_graphs_take_a_stream_each() -> None:
    ours, pieces = asked("graphmode, whole")["usage"], asked("ACLGraph, pieces")["usage"]
    assert ours["graphs"] == 8 and pieces["graphs"] == 8 * 5  # a small model has four layers


def test_graphs_share_one_pool() -> None:
    few = asked(
        "graphmode, whole", engine_arguments={"compilation_config": {"cudagraph_capture_sizes": [8]}}, batches=[8]
    )
    assert 0 < asked("graphmode, whole")["graphmode"]["pool"] <= 1.1 * few["graphmode"]["pool"]


def test_thirty_sizes_fit_into_a_budget_that_pieces_exceed() -> None:
    limits = {"max_num_seqs": 30, "compilation_config": {"cudagraph_capture_sizes": list(range(1, 31))}}
    sizes = {**QUICK, "batches": [4], "engine_arguments": limits, "environment": {"ASCEND_SIM_STREAMS": "100"}}
    with pytest.raises(ProcessFailed, match=r"207008|stream-resource exhaustion"):
        found_by("ACLGraph, pieces", **sizes)
    ours = found_by("graphmode, whole", **sizes)
    assert ours["graphmode"]["graphs"] == 30 and ours["graphmode"]["fallbacks"] == {}
    in_pieces = found_by("graphmode, pieces", **sizes)
    assert in_pieces["answers"] == ours["answers"]
    (reason,) = in_pieces["graphmode"]["fallbacks"]
    assert "no stream left for another graph" in reason
    assert in_pieces["usage"]["graphs"] % 5 == 0  # no size holds a part of its graphs
