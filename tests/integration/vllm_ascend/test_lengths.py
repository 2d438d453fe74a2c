"""Attention's lengths of a captured step: told before the launch, found in vLLM's metadata, or left to vllm-ascend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ascend_sim
import pytest
import torch
from contexts import config, context
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context, override_forward_context
from vllm_ascend.compilation import acl_graph

import graphmode
from graphmode.errors import FallbackError
from graphmode.integrations.vllm_ascend.static_graph import NpuGraphWrapper

FULL = CUDAGraphMode.FULL
HEADS, WIDTH, ROOM, ROWS = 4, 16, 64, 3
pytestmark = pytest.mark.usefixtures("fresh")


@dataclass
class Metadata:
    """As vllm-ascend's, by the parts that attention reads."""

    seq_lens_list: list[int]
    mask: Tensor | None = None
    decode: Any = None
    seq_lens: Tensor = field(default_factory=lambda: torch.zeros(ROWS, dtype=torch.int32))


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


def of(metadata: Any, size: int, wrapper: NpuGraphWrapper) -> Any:
    layer = wrapper.runnable
    return context(FULL, size, metadata, {"model": layer} if isinstance(layer, Attention) else {})


def step(wrapper: NpuGraphWrapper, q: Tensor, metadata: Any, size: int = ROWS) -> tuple[Any, Any]:
    here = of(metadata, size, wrapper)
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


def left_to_vllm_ascend(f: Callable[[Tensor], Tensor], why: str) -> None:
    flags = []

    def watched(q: Tensor) -> Tensor:
        flags.append(get_forward_context().capturing)
        return f(q)

    wrapper, q = steps_of(watched)
    _, here = step(wrapper, q, {"a": Metadata([5, 6, 7])})
    assert flags == [False, True]  # captured again, under the flag that vllm-ascend's attention looks at
    assert here.cudagraph_runtime_mode is FULL and not here.capturing
    assert (graphmode.report().captures, graphmode.report().live_calls) == (1, 0)
    (note,) = graphmode.report().notes
    assert note.startswith("attention's lengths") and why in note
    assert "forward" not in vars(wrapper.runnable.impl)


def of_the_step() -> Any:
    return get_forward_context().attn_metadata["a"]


def paged(q: Tensor) -> Tensor:
    blocks = torch.zeros(ROWS, 1, dtype=torch.int32, device="npu")
    keys, values = (t.view(ROWS, ROOM, HEADS, WIDTH) for t in cache())
    out = torch.empty(ROWS, HEADS, WIDTH, dtype=q.dtype, device="npu")
    torch.ops.atb._npu_paged_attention(
        q.view(ROWS, HEADS, WIDTH), keys, values, HEADS, HEADS, WIDTH**-0.5, blocks, of_the_step().seq_lens, out
    )
    return out


def told(q: Tensor) -> Tensor:
    return attend(q, of_the_step().seq_lens_list, *cache())


def test_lengths_that_are_computed_are_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(
        lambda q: attend(q, [n + 1 for n in of_the_step().seq_lens_list], *cache()), "is not in the metadata"
    )


def test_attention_without_lengths_is_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(lambda q: q * 2, "makes no call whose lengths can be updated")


def test_lengths_in_a_tensor_on_the_host_are_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(paged, "_npu_paged_attention reads a tensor on the host")


def test_a_list_of_the_metadata_that_another_op_takes_is_left_to_vllm_ascend() -> None:
    left_to_vllm_ascend(
        lambda q: told(q).repeat(of_the_step().seq_lens_list)[:ROWS, :1], "takes a list of the metadata"
    )


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError])
def test_attention_that_can_not_be_captured_so_is_left_to_vllm_ascend(error: type[Exception]) -> None:
    def f(q: Tensor) -> Tensor:
        if not get_forward_context().capturing:
            raise error("not in a capture")
        return q * 2

    left_to_vllm_ascend(f, f"{error.__name__}: not in a capture")


def test_a_step_without_attention_is_left_to_vllm_ascend() -> None:
    wrapper, q = NpuGraphWrapper(lambda q: q * 2, config(), FULL), query()
    for metadata in ({"a": Metadata([5, 6, 7])}, {"a": Metadata([6, 7, 8])}):
        out, _ = step(wrapper, q, metadata)
        assert torch.equal(out, q * 2)
    assert (graphmode.report().captures, graphmode.report().live_calls) == (1, 0)


def test_a_size_that_is_left_to_vllm_ascend_says_nothing_of_another() -> None:
    def by_size(q: Tensor) -> Tensor:
        return paged(q) if get_forward_context().batch_descriptor.num_tokens == 7 else told(q)

    wrapper, q = steps_of(by_size)
    assert step(wrapper, q, {"a": Metadata([5, 6, 7])}, 7)[1].cudagraph_runtime_mode is FULL
    for lengths in ([5, 6, 7], [6, 7, 8]):
        out, here = step(wrapper, q, {"a": Metadata(lengths)})
        assert torch.equal(out, attend(q, lengths, *cache())) and here.cudagraph_runtime_mode is not FULL
    assert step(wrapper, q, {"a": Metadata([5, 6, 7])}, 7)[1].cudagraph_runtime_mode is FULL
    assert (graphmode.report().graphs, graphmode.report().live_calls) == (2, 0)
    assert ["of 7 tokens" in note for note in graphmode.report().notes] == [True]


def test_a_model_that_counts_its_layers_counts_them_anew() -> None:
    def counts(q: Tensor) -> Tensor:
        here = get_forward_context()
        here.layer_idx = getattr(here, "layer_idx", 0) + 1
        return q * here.layer_idx

    wrapper, q = steps_of(counts)
    for _ in range(2):
        out, _ = step(wrapper, q, {"a": Metadata([5, 6, 7])})
        assert torch.equal(out, q)


def test_lengths_are_told_no_more_when_their_graph_is_gone() -> None:
    wrapper, q = steps_of(told)
    for _ in range(2):
        step(wrapper, q, {"a": Metadata([5, 6, 7])})
        assert len(wrapper._graphs._told) == 1
        wrapper.clear_graphs()
        assert not wrapper._graphs._told
    assert graphmode.report().captures == 2 and "forward" not in vars(wrapper.runnable.impl)


def test_required_graphs_are_an_error_where_the_metadata_is_of_another_kind() -> None:
    same = [5, 6, 7]
    with graphmode.options(require=True):
        wrapper, q = steps_of(told)
    step(wrapper, q, {"a": Metadata(same, decode=Metadata(same))})
    with pytest.raises(FallbackError, match="of another kind"):
        step(wrapper, q, {"a": Metadata([8, 8, 8], decode=Metadata([9, 9, 9]))})


def test_running_sums_are_given_as_they_are() -> None:
    """Layout TND: other requests than the graph was captured for, in as many rows."""
    keys, values = (t.reshape(ROWS * 4, 16, -1) for t in cache())

    def mixed(q: Tensor) -> Tensor:
        one = of_the_step()
        return torch.ops.npu.npu_fused_infer_attention_score(
            query=q.view(ROWS, HEADS, WIDTH),
            key=keys,
            value=values,
            block_table=one.mask,
            block_size=16,
            actual_seq_lengths=one.decode.seq_lens_list,
            actual_seq_lengths_kv=one.seq_lens_list,
            num_heads=HEADS,
            input_layout="TND",
            scale=WIDTH**-0.5,
        )[0]

    def requests(sums: list[int], lengths: list[int]) -> dict[str, Metadata]:
        table = torch.arange(4 * len(sums), device="npu", dtype=torch.int32).view(len(sums), 4)
        return {"a": Metadata(lengths, mask=table, decode=Metadata(sums))}

    wrapper, q = steps_of(mixed)
    for sums, lengths in (([1, 2, 3], [5, 6, 7]), ([1, 3], [9, 8]), ([3], [40]), ([1, 2, 3], [1, 2, 3])):
        out, _ = step(wrapper, q, requests(sums, lengths))
        here = requests(sums, lengths)
        with override_forward_context(of(here, ROWS, wrapper)):
            assert torch.equal(out, mixed(q)), sums
    assert (graphmode.report().captures, graphmode.report().live_calls) == (1, 0)


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
