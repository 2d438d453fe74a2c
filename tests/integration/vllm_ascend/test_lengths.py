"""Attention's lengths of a captured step: told before the launch, found in vLLM's metadata, or left to vllm-ascend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ascend_sim
import pytest
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, ForwardContext, get_forward_context, override_forward_context
from vllm_ascend.compilation import acl_graph

import graphmode
from graphmode.integrations.vllm_ascend.static_graph import NpuGraphWrapper

FULL = CUDAGraphMode.FULL
HEADS, WIDTH, ROOM, ROWS = 4, 16, 64, 3


@dataclass
class Metadata:
    """As vllm-ascend's, by the parts that attention reads."""

    seq_lens_list: list[int]
    mask: Tensor | None = None
    decode: Any = None
    seq_lens: Tensor = field(default_factory=lambda: torch.zeros(ROWS, dtype=torch.int32))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    graphmode.reset()
    monkeypatch.setattr(acl_graph, "_graph_params", None)
    acl_graph.set_graph_params([ROWS])
    with torch.inference_mode():
        yield
    graphmode.reset()


@functools.cache
def config() -> VllmConfig:
    return VllmConfig()


@functools.cache
def cache() -> tuple[Tensor, Tensor]:
    keys, values = (torch.randn(ROWS, ROOM, HEADS * WIDTH, device="npu", dtype=torch.float16) for _ in range(2))
    return keys, values


def attend(q: Tensor, lengths: list[int], keys: Tensor, values: Tensor, **more: Any) -> Tensor:
    return torch.ops.npu.npu_fused_infer_attention_score(
        query=q,
        key=keys,
        value=values,
        actual_seq_lengths_kv=lengths,
        num_heads=HEADS,
        input_layout="BSH",
        scale=WIDTH**-0.5,
        **more,
    )[0]


def two_layers(q: Tensor) -> Tensor:
    """A model: lengths of its two layers come from the context, as attention of vLLM's takes them."""
    of = get_forward_context().attn_metadata
    once = attend(q, of["first"].seq_lens_list, *cache())
    return attend(once * 2, of["second"].seq_lens_list, *reversed(cache())) + q


def expected(q: Tensor, first: list[int], second: list[int]) -> Tensor:
    return attend(attend(q, first, *cache()) * 2, second, *reversed(cache())) + q


class Attention(torch.nn.Module):
    """One of vLLM's layers that are looked up by name."""

    class Impl:
        def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
            self.f = f

        def forward(self, q: Tensor) -> Tensor:
            return self.f(q)

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.impl = self.Impl(f)

    def forward(self, q: Tensor) -> Tensor:
        return self.impl.forward(q)


def step(wrapper: NpuGraphWrapper, q: Tensor, metadata: Any) -> tuple[Any, Any]:
    here: Any = ForwardContext(
        no_compile_layers={"model": wrapper.runnable},
        attn_metadata=metadata,
        slot_mapping={},
        cudagraph_runtime_mode=FULL,
        batch_descriptor=BatchDescriptor(num_tokens=ROWS),
    )
    here.capturing = False  # as vllm-ascend adds it
    with override_forward_context(here):
        return wrapper(q), here


def waits() -> int:
    return sum(n for name, n in ascend_sim.calls().items() if "Synchronize" in name)


def query() -> Tensor:
    return torch.randn(ROWS, 1, HEADS * WIDTH, device="npu", dtype=torch.float16)


def steps_of(f: Callable[[Tensor], Tensor] = two_layers) -> tuple[NpuGraphWrapper, Tensor]:
    return NpuGraphWrapper(Attention(f), config(), FULL), query()


def test_each_step_has_its_own_lengths_and_the_model_runner_updates_nothing() -> None:
    wrapper, q = steps_of()
    for i in range(6):
        first, second = [i + 3, i + 9, i + 20], [30 - i, i + 1, 7]
        q.copy_(query())
        out, here = step(wrapper, q, {"first": Metadata(first), "second": Metadata(second)})
        assert torch.equal(out, expected(q, first, second)), i
        assert here.cudagraph_runtime_mode is CUDAGraphMode.NONE and not here.capturing
    report = graphmode.report()
    assert (report.captures, report.replays, report.updates, report.live_calls) == (1, 6, 5, 0)
    assert not acl_graph.get_graph_params().handles[ROWS]


def test_layers_of_one_group_share_their_metadata() -> None:
    wrapper, q = steps_of()
    for lengths in ([5, 6, 7], [6, 7, 8], [6, 7, 8], [1, 2, 3]):
        shared = Metadata(lengths)
        out, _ = step(wrapper, q, {"first": shared, "second": shared})
        assert torch.equal(out, expected(q, lengths, lengths))
    assert graphmode.report().updates == 2  # the third has what the second had


def test_steps_follow_one_another_without_waiting() -> None:
    wrapper, q = steps_of()
    metadata = [{"first": Metadata([i, 9, 9]), "second": Metadata([9, i, 9])} for i in range(3, 13)]
    step(wrapper, q, metadata[0])
    before = waits()
    outs = [step(wrapper, q, one)[0].clone() for one in metadata]
    assert waits() == before
    torch.npu.synchronize()
    assert waits() == before + 1
    for i, out in enumerate(outs, start=3):
        assert torch.equal(out, expected(q, [i, 9, 9], [9, i, 9])), i


def test_requests_that_are_not_there_have_no_keys() -> None:
    wrapper, q = steps_of(lambda q: attend(q, get_forward_context().attn_metadata["a"].seq_lens_list, *cache()))
    step(wrapper, q, {"a": Metadata([5, 6, 7])})
    out, _ = step(wrapper, q, {"a": Metadata([8, 9])})
    assert torch.equal(out, attend(q, [8, 9, 0], *cache()))
    assert graphmode.report().live_calls == 0


def test_lengths_in_a_part_of_the_metadata() -> None:
    wrapper, q = steps_of(lambda q: attend(q, get_forward_context().attn_metadata["a"].decode.seq_lens_list, *cache()))
    for lengths in ([5, 6, 7], [6, 7, 8]):
        out, _ = step(wrapper, q, {"a": Metadata([0], decode=Metadata(lengths))})
        assert torch.equal(out, attend(q, lengths, *cache()))
    assert graphmode.report().updates == 1


def test_a_tensor_of_the_metadata_may_move() -> None:
    def masked(q: Tensor) -> Tensor:
        one = get_forward_context().attn_metadata["a"]
        return attend(q, one.seq_lens_list, *cache(), atten_mask=one.mask)

    wrapper, q = steps_of(masked)
    for _ in range(4):
        mask = torch.rand(ROWS, 1, 1, ROOM, device="npu") > 0.5
        mask[..., 0] = False
        out, _ = step(wrapper, q, {"a": Metadata([40, 50, 60], mask=mask)})
        assert torch.equal(out, attend(q, [40, 50, 60], *cache(), atten_mask=mask))
    assert graphmode.report().live_calls == 0


@pytest.mark.parametrize("other", [None, {}, {"first": Metadata([1, 2, 3])}, {"first": None, "second": None}])
def test_metadata_of_another_kind_is_a_live_call_with_a_reason(other: Any) -> None:
    wrapper, q = steps_of()
    step(wrapper, q, {"first": Metadata([5, 6, 7]), "second": Metadata([7, 6, 5])})
    with pytest.raises((TypeError, KeyError, AttributeError)):  # the model's own error: it reads the same metadata
        step(wrapper, q, other)
    assert [f.reason[:33] for f in graphmode.report().fallbacks] == ["vLLM's metadata of attention is o"]


def test_places_that_were_one_and_are_two_are_a_live_call() -> None:
    def layer(q: Tensor) -> Tensor:
        return attend(q, get_forward_context().attn_metadata["a"].seq_lens_list, *cache())

    wrapper, q = steps_of(layer)
    same = [5, 6, 7]
    step(wrapper, q, {"a": Metadata(same, decode=Metadata(same))})
    out, _ = step(wrapper, q, {"a": Metadata([8, 8, 8], decode=Metadata([9, 9, 9]))})
    assert torch.equal(out, attend(q, [8, 8, 8], *cache()))
    assert graphmode.report().live_calls == 1


def left_to_vllm_ascend(f: Callable[[Tensor], Tensor]) -> None:
    flags = []

    def watched(q: Tensor) -> Tensor:
        flags.append(get_forward_context().capturing)
        return f(q)

    wrapper, q = steps_of(watched)
    _, here = step(wrapper, q, {"a": Metadata([5, 6, 7])})
    assert flags == [False, True]  # captured again, under the flag that vllm-ascend's attention looks at
    assert here.cudagraph_runtime_mode is FULL
    assert (graphmode.report().captures, graphmode.report().live_calls) == (1, 0)


def test_lengths_that_are_computed_are_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(
        lambda q: attend(q, [n + 1 for n in get_forward_context().attn_metadata["a"].seq_lens_list], *cache())
    )


def test_a_step_without_lengths_is_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(lambda q: q * 2)


def test_lengths_in_a_tensor_on_the_host_are_left_to_vllm_ascend() -> None:
    def paged(q: Tensor) -> Tensor:
        one = get_forward_context().attn_metadata["a"]
        blocks = torch.zeros(ROWS, 1, dtype=torch.int32, device="npu")
        keys, values = (t.view(ROWS, ROOM, HEADS, WIDTH) for t in cache())
        out = torch.empty(ROWS, HEADS, WIDTH, dtype=q.dtype, device="npu")
        torch.ops.atb._npu_paged_attention(
            q.view(ROWS, HEADS, WIDTH), keys, values, HEADS, HEADS, WIDTH**-0.5, blocks, one.seq_lens, out
        )
        return out

    left_to_vllm_ascend(paged)


def test_an_update_that_the_op_refuses_raises_and_drops_the_graph() -> None:
    blocks = [t.reshape(ROWS * 4, 16, -1) for t in cache()]
    table = torch.arange(ROWS * 4, device="npu", dtype=torch.int32).view(ROWS, 4)

    def paged(q: Tensor, lengths: list[int] | None = None) -> Tensor:
        lengths = lengths or get_forward_context().attn_metadata["a"].seq_lens_list
        return attend(q, lengths, *blocks, block_table=table, block_size=16)

    wrapper, q = steps_of(paged)
    step(wrapper, q, {"a": Metadata([5, 6, 7])})
    with pytest.raises(RuntimeError, match="99 keys in 4 blocks"):
        step(wrapper, q, {"a": Metadata([5, 6, 99])})
    assert graphmode.report().graphs == 0
    out, _ = step(wrapper, q, {"a": Metadata([6, 7, 8])})
    assert torch.equal(out, paged(q, [6, 7, 8]))
    assert graphmode.report().captures == 2
