"""graphmode's wrapper in ACLGraphWrapper's place: what vllm-ascend's attention records, and what it must not update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contexts import config, context
from torch import Tensor
from vllm.compilation import monitor
from vllm.config import CUDAGraphMode
from vllm.forward_context import override_forward_context
from vllm_ascend.compilation import acl_graph

import graphmode
from graphmode.integrations.vllm_ascend.static_graph import NpuGraphWrapper

FULL, PIECEWISE, NONE = CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE, CUDAGraphMode.NONE
FOUR, EIGHT = 4, 8
pytestmark = pytest.mark.usefixtures("fresh")


def call(wrapper: NpuGraphWrapper, here: Any, *args: Tensor) -> Any:
    with override_forward_context(here):
        return wrapper(*args)


def recorded() -> int:
    params = acl_graph.get_graph_params()
    return sum(len(known) for known in (*params.events.values(), *params.handles.values()))


def recording(here: Any, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """As vllm-ascend's attention does, without an event that a replay would wait for."""

    def attention(x: Tensor) -> Tensor:
        if here.capturing:
            params = acl_graph.get_graph_params()
            params.events[x.shape[0]].append(object())
            params.handles[x.shape[0]].append(object())
        return f(x)

    return attention


def test_a_size_is_captured_replayed_and_is_an_aclgraph_to_vllm_ascend() -> None:
    wrapper, x, here = (
        NpuGraphWrapper(lambda x: x * 2, config(), FULL),
        torch.ones(4, device="npu"),
        context(FULL, FOUR),
    )
    assert isinstance(wrapper, acl_graph.ACLGraphWrapper)
    for value in (1.0, 3.0, 5.0):
        x.fill_(value)
        assert call(wrapper, here, x).tolist() == [2 * value] * 4
    report = graphmode.report()
    assert (report.captures, report.replays, report.live_calls) == (1, 3, 0)
    assert here.cudagraph_runtime_mode is FULL and not here.capturing


def test_a_call_without_a_graph_is_not_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, here = NpuGraphWrapper(lambda x: x * 2, config(), FULL), context(FULL, FOUR)
    monkeypatch.setattr(monitor, "cudagraph_capturing_enabled", False)
    assert call(wrapper, here, torch.ones(4, device="npu")).tolist() == [2.0] * 4
    assert here.cudagraph_runtime_mode is NONE
    assert [f.reason[:29] for f in graphmode.report().fallbacks] == ["vLLM allows no capture now: i"]


def test_a_capture_that_fails_leaves_nothing_to_update() -> None:
    here = context(FULL, FOUR)
    wrapper = NpuGraphWrapper(recording(here, lambda x: x * x.sum().item()), config(), FULL)
    assert call(wrapper, here, torch.ones(4, device="npu")).tolist() == [4.0] * 4
    assert recorded() == 0 and not here.capturing and here.cudagraph_runtime_mode is NONE
    assert graphmode.report().live_calls == 1


def test_what_attention_recorded_goes_with_its_graph() -> None:
    here = context(FULL, FOUR)
    wrapper = NpuGraphWrapper(recording(here, lambda x: x + 1), config(), FULL)
    call(wrapper, here, torch.ones(4, device="npu"))
    assert recorded() == 2
    wrapper.clear_graphs()
    assert recorded() == 0


def test_sleep_drops_the_graphs() -> None:
    from vllm_ascend.device_allocator.sleep_mem_optimized import AclGraphSleepWakeupManager

    wrapper, x = NpuGraphWrapper(lambda x: x + 1, config(), FULL), torch.ones(4, device="npu")
    call(wrapper, context(FULL, FOUR), x)
    AclGraphSleepWakeupManager.reset_all_graph_params()
    assert graphmode.report().graphs == 0
    assert call(wrapper, context(FULL, FOUR), x).tolist() == [2.0] * 4
    assert graphmode.report().captures == 2


def test_a_size_in_pieces_that_finds_no_room_gives_back_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphmode.devices.adapter import device_named

    pieces = [NpuGraphWrapper(lambda x: x + 1, config(), PIECEWISE) for _ in range(3)]
    large, small = torch.ones(8, device="npu"), torch.ones(4, device="npu")
    for i, piece in enumerate(pieces):
        if i == 2:
            monkeypatch.setattr(device_named("npu"), "full", True)
        assert call(piece, context(PIECEWISE, EIGHT), large).tolist() == [2.0] * 8
    assert graphmode.report().graphs == 0
    assert call(pieces[0], context(PIECEWISE, FOUR), small).tolist() == [2.0] * 4
    assert graphmode.report().graphs == 0
    (reason,) = {f.reason for f in graphmode.report().fallbacks}
    assert "no stream left" in reason
    for piece in pieces:
        piece.clear_graphs()
    assert call(pieces[0], context(PIECEWISE, FOUR), small).tolist() == [2.0] * 4
    assert graphmode.report().graphs == 1
