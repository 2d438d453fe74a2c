"""Lengths of attention, which are Python integers: one graph for all of them, and never one that has old ones."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import ascend_sim
import pytest
import torch
from torch import Tensor

import graphmode
from graphmode.devices.adapter import device_named
from graphmode.inspect.counters import ledger
from tests.contract.ways import assert_same, both_ways, counted, reasons

Function = Callable[..., Any]
HEADS, WIDTH, ROOM = 4, 16, 64


def compiled(f: Function, **options: Any) -> Any:
    return torch.compile(f, backend="graphmode", dynamic=True, options=options)


def heads(tokens: int = 1, sequences: int = 2) -> Tensor:
    return torch.randn(sequences, tokens, HEADS * WIDTH, device="npu", dtype=torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], **more: Any) -> Tensor:
    return torch.ops.npu.npu_fused_infer_attention_score(
        q, k, v, actual_seq_lengths_kv=lengths, num_heads=HEADS, input_layout="BSH", scale=WIDTH**-0.5, **more
    )[0]


def attend_2(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return torch.ops.npu.npu_fused_infer_attention_score_v2(
        q, k, v, actual_seq_kvlen=lengths, num_query_heads=HEADS, input_layout="BSH", softmax_scale=WIDTH**-0.5
    )[0]


def layer(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return (attend(q * 2, k, v, lengths) + q).relu()


def beside_eager(g: Function, f: Function, tensors: tuple[Tensor, ...], lengths: Any) -> None:
    for n in lengths:
        assert_same(g(*tensors, n), f(*tensors, n), f"with {n}")


def test_a_decode_loop_of_growing_lengths_has_one_graph() -> None:
    g, cache = compiled(layer), (heads(ROOM), heads(ROOM))
    with counted() as since:
        for i in range(12):
            q = heads()
            assert_same(g(q, *cache, [i + 3, i + 20]), layer(q, *cache, [i + 3, i + 20]))
    assert (since.captures, since.graphs, since.replays, since.live_calls) == (1, 1, 10, 0), reasons()
    assert graphmode.report().updates == 10
    assert "replays with other lengths" in str(graphmode.report())


def test_lengths_that_become_dynamic_by_themselves_have_one_graph_too() -> None:
    g, cache = torch.compile(layer, backend="graphmode"), (heads(ROOM), heads(ROOM))
    with counted() as since:
        beside_eager(g, layer, (heads(), *cache), [[i, i + 5] for i in range(3, 15)])
    assert (since.captures, since.replays) == (1, 9), reasons()  # two warm-ups: with fixed lengths, and with any


def test_lengths_that_come_again_update_nothing() -> None:
    g, tensors = compiled(layer), (heads(), heads(ROOM), heads(ROOM))
    beside_eager(g, layer, tensors, [[3, 4], [4, 5], [5, 6]])
    torch.npu.synchronize()
    before = ascend_sim.calls()["aclmdlRICaptureTaskUpdateBegin"]
    beside_eager(g, layer, tensors, [[5, 6]] * 4)
    assert ascend_sim.calls()["aclmdlRICaptureTaskUpdateBegin"] == before
    beside_eager(g, layer, tensors, [[6, 5], [5, 6], [5, 6], [3, 4]])
    assert ascend_sim.calls()["aclmdlRICaptureTaskUpdateBegin"] == before + 3
    assert graphmode.report().graphs == 1


def two_layers(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend_2(layer(q, k, v, lengths), v, k, lengths) + attend(q, v, k, lengths[::-1])


def with_sums(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    later = [max(n + 1, 2) for n in lengths]
    return attend(q, k, v, later) + attend_2(q, k, v, [lengths[0] * 2, lengths[0] + lengths[1] // 2 - 1])


def of_both_kinds(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, lengths, actual_seq_lengths=[1, 1])


@pytest.mark.parametrize("f", [two_layers, with_sums, of_both_kinds])
def test_several_calls_and_lengths_that_are_computed(f: Function) -> None:
    g, tensors = compiled(f), (heads(), heads(ROOM), heads(ROOM))
    with counted() as since:
        beside_eager(g, f, tensors, [[i, 2 * i] for i in range(3, 13)])
        beside_eager(g, f, tensors, [[9, 4], [4, 9], [4, 10]])
    assert (since.captures, since.live_calls) == (1, 0), reasons()


def test_tokens_in_one_row_with_lengths_that_are_sums() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        ends = list(accumulate(lengths))
        return torch.ops.npu.npu_fused_infer_attention_score(
            q, k, v, actual_seq_lengths=[1, 2, 3], actual_seq_lengths_kv=ends, num_heads=HEADS, input_layout="TND"
        )[0]

    def rows(n: int) -> Tensor:
        return torch.randn(n, HEADS, WIDTH, device="npu", dtype=torch.float16)

    g, tensors = compiled(f), (rows(3), rows(ROOM), rows(ROOM))
    with counted() as since:
        beside_eager(g, f, tensors, [[i, 2 * i, 3] for i in range(3, 13)])
    assert since.captures == 1, reasons()


def size_of_a_result(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, lengths) + torch.ones(lengths[0], device="npu", dtype=q.dtype).sum()


def an_operand(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, lengths) * lengths[1]


def a_result(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> tuple[Tensor, int]:
    return attend(q, k, v, lengths), lengths[0] + 1


def size_of_an_operand(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, lengths) + k[:, : lengths[1]].sum()


def another_argument(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, lengths, next_tokens=lengths[0])


def one_of_an_older_op(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    older = torch.ops.npu.npu_incre_flash_attention(
        q, k, v, actual_seq_lengths=lengths, num_heads=HEADS, input_layout="BSH", scale_value=WIDTH**-0.5
    )
    return attend(q, k, v, lengths) + older


def a_division(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    return attend(q, k, v, [int(n / 2) for n in lengths])


@pytest.mark.parametrize(
    "f", [size_of_a_result, an_operand, a_result, size_of_an_operand, another_argument, one_of_an_older_op, a_division]
)
def test_lengths_that_are_used_elsewhere_select_a_graph_each(f: Function) -> None:
    g, tensors = compiled(f), (heads(), heads(ROOM), heads(ROOM))
    with counted() as since:
        for n in ([4, 6], [5, 7], [9, 12]) * 3:
            assert_same(g(*tensors, n), f(*tensors, n), f"with {n}")
    assert (since.captures, since.graphs, since.replays) == (3, 3, 3), reasons()
    assert graphmode.report().updates == 0


def test_one_length_that_is_used_elsewhere_selects_a_graph_and_the_others_do_not() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        return attend(q, k, v, [lengths[0] + lengths[1], lengths[0]]) * lengths[1]

    g, tensors = compiled(f), (heads(), heads(ROOM), heads(ROOM))
    with counted() as since:
        for second in (3, 7):
            beside_eager(g, f, tensors, [[i, second] for i in range(4, 14)])
        beside_eager(g, f, tensors, [[5, 3], [6, 7], [6, 3], [5, 7]])
    assert (since.captures, since.graphs) == (2, 2), reasons()


def test_results_are_kept_while_later_calls_run() -> None:
    g, cache, held, want = compiled(layer), (heads(ROOM), heads(ROOM)), [], []
    for i in range(12):
        q = heads()
        held.append(g(q, *cache, [i + 3, i + 4]))
        want.append(layer(q, *cache, [i + 3, i + 4]))
    assert_same(held, want)


def test_a_cache_is_written_where_it_lies_and_may_move() -> None:
    def step(k: Tensor, v: Tensor, x: Tensor, at: Tensor, length: int) -> Tensor:
        k.index_copy_(1, at, x)
        v.index_copy_(1, at, x * 2)
        return attend(x, k, v, [length + 1, length + 1])

    g, mine = torch.compile(step, backend="graphmode", dynamic=True), [heads(ROOM), heads(ROOM)]
    theirs = [t.clone() for t in mine]
    for i in range(3, 20):
        if i == 10:
            mine = [t.clone() for t in mine]
        x, at = heads(), torch.tensor([i], device="npu")
        assert_same(g(*mine, x, at, i), step(*theirs, x, at, i))
        assert_same(mine, theirs)
    assert graphmode.report().graphs <= 2


@both_ways()
def test_both_ways_to_compile(way: Function) -> None:
    g, tensors = way(two_layers, poison=True), (heads(), heads(ROOM), heads(ROOM))
    with counted() as since:
        beside_eager(g, two_layers, tensors, [[i, i + 5] for i in range(3, 30)])
    assert since.captures == 1 and since.replays > 20, reasons()


def test_in_inference_mode_and_with_verify() -> None:
    g, tensors = compiled(layer, verify=True), (heads(), heads(ROOM), heads(ROOM))
    for _ in range(2):
        with torch.inference_mode():
            beside_eager(g, layer, tensors, [[i, i + 5] for i in range(3, 9)])
        beside_eager(g, layer, tensors, [[i, i + 5] for i in range(3, 9)])
    assert any("not verified" in note for note in graphmode.report().notes)
    assert graphmode.report().captures == 2 and graphmode.report().updates > 8


def test_sizes_have_a_graph_each_and_go_within_the_cap() -> None:
    g = compiled(layer, max_graphs=2)
    inputs = {n: (heads(1, n), heads(ROOM, n), heads(ROOM, n)) for n in (2, 3, 4)}
    for i in range(3, 12):
        for n, tensors in inputs.items():
            lengths = [i + j for j in range(n)]
            assert_same(g(*tensors, lengths), layer(*tensors, lengths))
    assert graphmode.report().graphs <= 6  # lists of another length are another program, with a cap of its own
    q, k, v = inputs[2]
    for i in range(3, 12):
        for room in (32, 48, ROOM):
            assert_same(g(q, k[:, :room], v[:, :room], [i, i]), layer(q, k[:, :room], v[:, :room], [i, i]))
    assert all(len(region.graphs) <= 2 for region in ledger.regions())


def pool_after(sizes: list[int]) -> int:
    torch._dynamo.reset()
    graphmode.reset()
    gc.collect()
    g, cache = compiled(layer), (heads(ROOM), heads(ROOM))
    for n in sizes * 2:
        q = heads(n)
        beside_eager(g, layer, (q, *cache), [[i, i] for i in range(3, 6)])
    assert graphmode.report().graphs == len(sizes) and graphmode.report().updates > len(sizes)
    return device_named("npu").pool_bytes()


def test_what_updates_need_to_know_of_a_graph_holds_no_memory() -> None:
    """Results, and memory for the largest lengths, of many sizes lie over one another."""
    sizes = [4096 * n for n in range(1, 7)]
    alone = pool_after(sizes[-1:])
    for order in (sizes, sizes[::-1]):
        assert 0 < pool_after(order) <= 1.1 * alone


@pytest.mark.parametrize("scalars", [False, True], ids=["by Dynamo", "in the program"])
def test_lengths_that_are_read_from_a_tensor(scalars: bool) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        longest = lengths.max().item()
        return attend(q, k, v, [longest + 1, longest])

    g, cache = torch.compile(f, backend="graphmode"), (heads(ROOM), heads(ROOM))
    with torch._dynamo.config.patch(capture_scalar_outputs=scalars):
        beside_eager(g, f, (heads(), *cache), [torch.tensor([i, 2], device="npu") for i in range(3, 15)])
    assert graphmode.report().graphs == 2 and graphmode.report().updates > 8


def test_after_a_reset_all_is_captured_anew() -> None:
    g, tensors = compiled(layer), (heads(), heads(ROOM), heads(ROOM))
    beside_eager(g, layer, tensors, [[i, i] for i in range(3, 9)])
    graphmode.reset()
    torch.npu.synchronize()
    assert ascend_sim.usage().graphs == 0
    beside_eager(g, layer, tensors, [[i, i] for i in range(3, 9)])
    assert graphmode.report().graphs == 1


def test_calls_on_many_streams_at_once_do_not_mix() -> None:
    """No synchronisation between them: what a graph's calls have is changed while other replays wait for their turn."""
    g, streams, cache = compiled(two_layers), [torch.npu.Stream() for _ in range(4)], (heads(ROOM), heads(ROOM))
    inputs = [(heads(), [n % 7 + 3, n % 5 + 9]) for n in range(40)]
    for _ in range(3):
        g(heads(), *cache, [3, 4])
    torch.npu.synchronize()
    held = []
    for i, (q, lengths) in enumerate(inputs):
        with torch.npu.stream(streams[i % 4]):
            held.append(g(q, *cache, lengths))
    torch.npu.synchronize()
    assert_same(held, [two_layers(q, *cache, lengths) for q, lengths in inputs])
    assert graphmode.report().graphs == 1


def test_calls_of_many_threads_do_not_mix() -> None:
    g, cache = compiled(two_layers), (heads(ROOM), heads(ROOM))
    inputs = [(heads(), [n % 7 + 3, n % 5 + 9]) for n in range(40)]
    want = [two_layers(q, *cache, lengths) for q, lengths in inputs]
    g(heads(), *cache, [3, 4])
    torch.npu.synchronize()

    def work(mine: list[int]) -> list[Tensor]:
        with torch.no_grad(), torch.npu.stream(torch.npu.Stream()):
            found = [g(inputs[i][0], *cache, inputs[i][1]) for i in mine for _ in range(2)]
            torch.npu.current_stream().synchronize()
            return found[::2]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [list(range(k, 40, 4)) for k in range(4)]))
    for k in range(4):
        assert_same(found[k], want[k::4])
    assert graphmode.report().graphs == 1


def test_the_second_npu_while_the_first_is_the_current_one() -> None:
    g = compiled(layer)
    tensors = tuple(t.to("npu:1") for t in (heads(), heads(ROOM), heads(ROOM)))
    with counted() as since:
        beside_eager(g, layer, tensors, [[i, i + 5] for i in range(3, 13)])
    assert torch.npu.current_device() == 0
    assert (since.captures, since.replays) == (1, 8), reasons()


# --- what fails ---------------------------------------------------------------------------------------------------


def test_lengths_that_the_op_refuses_are_an_error_that_changes_nothing() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, table: Tensor, calls: Tensor, lengths: list[int]) -> Tensor:
        calls.add_(1)
        paged = {"block_table": table, "block_size": 16}
        return attend(q, k, v, lengths, **paged) + attend(q * 2, k, v, lengths[::-1], **paged)

    blocks = torch.randn(2, 8, 16, HEADS * WIDTH, device="npu", dtype=torch.float16).unbind(0)
    table = torch.arange(8, device="npu", dtype=torch.int32).view(2, 4)
    mine, theirs = torch.zeros(2, device="npu").unbind(0)
    g, tensors = compiled(f), (heads(), *blocks, table)
    for i in range(3, 9):
        assert_same(g(*tensors, mine, [i, i]), f(*tensors, theirs, [i, i]))
    with counted() as since, pytest.raises(RuntimeError, match="99 keys in 4 blocks") as raised:
        g(*tensors, mine, [3, 99])  # the last sequence is refused when the first ones were taken
    assert any("[3, 99]" in note for note in raised.value.__notes__) and since.graphs == -1
    with pytest.raises(RuntimeError, match="99 keys in 4 blocks"):
        f(*tensors, theirs.clone(), [3, 99])
    for lengths in ([8, 8], [3, 9], [9, 3], [9, 3]):
        assert_same(g(*tensors, mine, lengths), f(*tensors, theirs, lengths))
    assert_same(mine, theirs)
    assert graphmode.report().graphs == 1


def test_a_graph_is_captured_by_the_first_call_where_that_is_asked_for() -> None:
    g, tensors = compiled(layer, capture_after=0), (heads(), heads(ROOM), heads(ROOM))
    with counted() as since:
        beside_eager(g, layer, tensors, [[i, i] for i in range(3, 9)])
    assert (since.captures, since.replays) == (1, 5), reasons()


def test_a_device_that_can_not_update_has_a_graph_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(*_: object) -> None:
        raise RuntimeError("207000: the driver has no such feature")

    monkeypatch.setattr(torch.npu, "graph_task_update_begin", too_old)
    g, tensors = compiled(layer), (heads(), heads(ROOM), heads(ROOM))
    beside_eager(g, layer, tensors, [[3, 4], [5, 6], [7, 8]] * 3)
    assert graphmode.report().updates == 0 and graphmode.report().graphs == 3
    assert any("207000" in note for note in graphmode.report().notes)


def test_a_device_that_can_not_group_tasks_has_a_graph_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(*_: object) -> None:
        raise RuntimeError("207000: the driver has no such feature")

    monkeypatch.setattr(torch.npu, "graph_task_group_begin", too_old)
    g, tensors = compiled(layer, require=True), (heads(), heads(ROOM), heads(ROOM))
    beside_eager(g, layer, tensors, [[3, 4], [5, 6], [7, 8]] * 3)
    assert graphmode.report().updates == 0 and graphmode.report().graphs == 3


def test_an_update_that_was_interrupted_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    g, tensors = compiled(two_layers), (heads(), heads(ROOM), heads(ROOM))
    beside_eager(g, two_layers, tensors, [[i, i] for i in range(3, 9)])
    end, calls = torch.npu.graph_task_update_end, []

    def interrupted(stream: Any) -> None:
        end(stream)
        calls.append(stream)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.npu, "graph_task_update_end", interrupted)
        g(*tensors, [20, 21])
    beside_eager(g, two_layers, tensors, [[8, 8], [20, 21], [8, 8]])
    assert graphmode.report().graphs == 1


def test_a_task_that_fails_in_a_replay_leaves_the_next_one_right() -> None:
    """The graph ends before attention: what its tasks have by then is what was said."""
    table = heads(8, 1)[0]

    def f(i: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        return attend(torch.nn.functional.embedding(i, table), k, v, lengths)

    good, bad = (torch.full((2, 1), i, device="npu") for i in (3, 9))
    g, cache = compiled(f), (heads(ROOM), heads(ROOM))
    beside_eager(g, f, (good, *cache), [[i, i] for i in range(3, 9)])
    for lengths in ([20, 21], [22, 23]):
        g(bad, *cache, lengths)
        with pytest.raises(RuntimeError, match="out of range"):
            torch.npu.synchronize()
        beside_eager(g, f, (good, *cache), [lengths, [8, 8], [8, 9]])
    assert graphmode.report().graphs == 1
