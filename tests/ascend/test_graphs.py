"""graphmode on an NPU: eager's bits by one launch a call, and the promises that fixed addresses put to the test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ascend_sim
import pytest
import torch
from torch import Tensor, nn

import graphmode
from graphmode import _C
from graphmode.backend import graphmode_backend
from tests.contract.ways import assert_same, counted, reasons

Function = Callable[..., Any]


def compiled(f: Function, **options: Any) -> Any:
    return torch.compile(f, backend="graphmode", options=options)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8)).npu().eval()


def test_a_call_is_one_launch_and_gives_eager_s_bits() -> None:
    model, x = net(), torch.randn(4, 16, device="npu")
    g = compiled(model)
    with counted() as since:
        for _ in range(6):
            assert_same(g(x), model(x))
    assert since.captures == 1 and since.replays == 4 and since.live_calls == 0
    torch.npu.synchronize()
    before = ascend_sim.usage().executions
    g(x)
    torch.npu.synchronize()
    assert ascend_sim.usage().executions == before + 1


def test_results_are_kept_while_later_calls_run() -> None:
    model, held, want = net(), [], []
    g = compiled(model)
    for _ in range(12):
        x = torch.randn(4, 16, device="npu")
        held.append(g(x))
        want.append(model(x))
    assert_same(held, want)


def test_a_hundred_sizes_stay_right_and_within_the_cap_of_graphs() -> None:
    model = net()
    torch._dynamo.mark_dynamic(first := torch.randn(2, 16, device="npu"), 0)
    g = compiled(model, max_graphs=16)
    g(first)
    for n in [*range(2, 102), *range(2, 12)]:
        x = torch.randn(n, 16, device="npu")
        for _ in range(2):
            assert_same(g(x), model(x))
    assert graphmode.report().graphs <= 16


def test_random_numbers_are_drawn_anew_by_each_replay_as_eager_draws_them() -> None:
    f = lambda x: x * torch.rand_like(x) + torch.randn(3, device=x.device)  # noqa: E731
    g, x, drawn = compiled(f), torch.ones(3, device="npu"), []
    for i in range(8):
        torch.manual_seed(i // 2)
        got = g(x)
        torch.manual_seed(i // 2)
        assert_same(got, f(x))
        drawn.append(got.cpu())
    assert not torch.equal(drawn[4], drawn[6])


@pytest.mark.parametrize("how", ["load_state_dict", "set_data", "in place", "new parameter"])
def test_weights_that_were_reloaded_are_seen(how: str) -> None:
    model, x = net(), torch.randn(4, 16, device="npu")
    g = compiled(model)
    for i in range(9):
        if i in (3, 6):
            first = model[0]
            fresh = torch.randn_like(first.weight)
            if how == "load_state_dict":
                model.load_state_dict({**model.state_dict(), "0.weight": fresh})
            elif how == "set_data":
                first.weight.data = fresh
            elif how == "in place":
                first.weight.copy_(fresh)
            else:
                first.weight = nn.Parameter(fresh)
        assert_same(g(x), model(x))


def test_a_cache_is_written_where_it_lies_and_may_move() -> None:
    def step(cache: Tensor, x: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, at, x)
        return cache.sum(0)

    g, mine = compiled(step), torch.zeros(32, 8, device="npu")
    theirs = mine.clone()
    for i in range(12):
        if i == 6:  # as after a reload of the engine
            mine = mine.clone()
        home = mine.data_ptr()
        x, at = torch.randn(1, 8, device="npu"), torch.tensor([i], device="npu")
        assert_same(g(mine, x, at), step(theirs, x, at))
        assert_same(mine, theirs)
        assert mine.data_ptr() == home


def test_without_memory_for_a_graph_the_call_runs_and_says_so() -> None:
    f = lambda x: (x.exp() + 1).sum(0)  # noqa: E731
    g, x = compiled(f), torch.randn(2**20, 8, device="npu")
    g(x)
    torch.npu.synchronize()
    torch.npu.empty_cache()
    ascend_sim.fail_allocation(1)
    try:
        for _ in range(3):
            assert_same(g(x), f(x))
    finally:
        ascend_sim.fail_allocation(0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * torch.rand(()) + 1,
        lambda x: (x + 1, torch.rand(3)),
        lambda x: (x * 2).to("cpu"),
        lambda x: (x * 2).to("cpu", non_blocking=True),
        lambda x: x + torch.arange(4, device="cpu").to(x.device),
    ],
    ids=["a number of the host", "a result of the host", "to the host", "to the host later", "from the host"],
)
def test_what_the_host_does_is_done_at_every_call(f: Function) -> None:
    g = compiled(f)
    for i in range(6):
        x = torch.full((4,), float(i), device="npu")
        torch.manual_seed(i)
        got = g(x)
        torch.manual_seed(i)
        want = f(x)
        torch.npu.synchronize()
        assert_same(got, want)
    assert reasons()


def test_a_custom_op_runs_at_every_call() -> None:
    seen: list[int] = []

    @torch.library.custom_op("ascend_tests::note", mutates_args=())
    def note(x: Tensor) -> Tensor:
        seen.append(1)
        return x + len(seen)

    note.register_fake(torch.empty_like)
    g, x = compiled(lambda x: note(x * 2) + 1), torch.ones(3, device="npu")
    for i in range(5):
        assert g(x).sum().item() == 3 * (2 + (i + 1) + 1)
    assert len(seen) == 5 and any("custom op" in r for r in reasons())


@pytest.mark.parametrize(
    "f",
    [lambda x: x.view(torch.int32), lambda x: x.t(), lambda x: x[1:], lambda x: (x * 2).view(torch.int16), lambda x: x],
    ids=["input, other dtype", "transposed", "a part", "result, other dtype", "the input"],
)
def test_results_that_are_views(f: Function) -> None:
    g, home = compiled(lambda x: (f(x), x + 1)), torch.randn(6, 4, device="npu")
    for i in range(6):
        x = home if i % 2 else torch.randn(6, 4, device="npu")
        assert_same(g(x), (f(x), x + 1))


def test_verify_says_that_it_cannot() -> None:
    g, x = compiled(lambda c, x: c.add_(x), verify=True), torch.ones(3, device="npu")
    mine, theirs = torch.zeros(3, device="npu"), torch.zeros(3, device="npu")
    for _ in range(5):
        assert_same(g(mine, x), theirs.add_(x))
    assert any("not verified" in note for note in graphmode.report().notes)


def test_an_op_that_no_graph_can_hold_runs_between_two() -> None:
    f = lambda x: (x * 2).cumsum(0)[x.argmax().item() :].sum() + 1  # noqa: E731
    g, x = compiled(f), torch.randn(8, device="npu")
    for _ in range(5):
        assert_same(g(x), f(x))
    assert reasons()


def test_two_models_share_the_pool_and_give_it_back() -> None:
    models = [net() for _ in range(2)]
    both = [compiled(m) for m in models]
    x = torch.randn(4, 16, device="npu")
    for _ in range(5):
        for g, model in zip(both, models, strict=True):
            assert_same(g(x), model(x))
    assert ascend_sim.usage().graphs == 2
    del g, both
    torch._dynamo.reset()
    graphmode.reset()
    assert ascend_sim.usage().graphs == 0
    model = models[0]
    g = compiled(model)
    for _ in range(4):
        assert_same(g(x), model(x))


def test_a_task_that_fails_in_a_replay_reaches_the_caller() -> None:
    table = torch.randn(4, 3, device="npu")
    g = compiled(lambda i: nn.functional.embedding(i, table) * 2)
    good, bad = torch.tensor([1], device="npu"), torch.tensor([9], device="npu")
    for _ in range(4):
        g(good)
    g(bad)
    with pytest.raises(RuntimeError, match="out of range"):
        torch.npu.synchronize()
    assert_same(g(good), table[1:2] * 2)


def test_calls_on_many_streams_at_once_do_not_mix() -> None:
    """No synchronisation between them: the graphs' own memory is one."""
    model, streams = net(), [torch.npu.Stream() for _ in range(4)]
    g, inputs = compiled(model), [torch.randn(256, 16, device="npu") for _ in range(24)]
    for _ in range(3):
        g(inputs[0].clone())
    torch.npu.synchronize()
    held = []
    for i, x in enumerate(inputs):
        with torch.npu.stream(streams[i % 4]):
            held.append(g(x))
    torch.npu.synchronize()
    assert_same(held, [model(x) for x in inputs])


def test_a_stream_waits_for_the_graph_of_another_and_not_for_what_came_after_it() -> None:
    """Streams take turns in the graphs' memory; what one is given besides is its own."""
    g, first, second = compiled(net()), torch.npu.Stream(), torch.npu.Stream()
    x, large = torch.randn(256, 16, device="npu"), torch.randn(2048, 2048, device="npu")
    for stream in (first, second, first, second) * 2:
        with torch.npu.stream(stream):
            g(x)
    torch.npu.synchronize()
    done = [torch.npu.Event(enable_timing=True) for _ in range(3)]
    with torch.npu.stream(first):
        g(x)
        done[0].record()
        for _ in range(20):  # each takes the device longer than the host
            large.exp()
        done[1].record()
    with torch.npu.stream(second):
        g(x)
        done[2].record()
    torch.npu.synchronize()
    assert done[0].elapsed_time(done[2]) < done[0].elapsed_time(done[1])


def test_calls_of_many_threads_do_not_mix() -> None:
    model = net()
    g, inputs = compiled(model), [torch.randn(n % 5 + 2, 16, device="npu") for n in range(40)]
    want = [model(x) for x in inputs]
    torch.npu.synchronize()

    def work(mine: list[int]) -> list[Tensor]:
        with torch.no_grad(), torch.npu.stream(torch.npu.Stream()):
            found = [g(inputs[i]) for i in mine for _ in range(2)]
            torch.npu.current_stream().synchronize()
            return found[::2]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [list(range(k, 40, 4)) for k in range(4)]))
    for k in range(4):
        assert_same(found[k], want[k::4])


def test_a_call_inside_somebody_else_s_capture_is_recorded_there() -> None:
    model, x = net(), torch.randn(4, 16, device="npu")
    g = compiled(model)
    for _ in range(4):
        g(x)
    torch.npu.synchronize()
    outer = torch.npu.NPUGraph()
    with torch.npu.graph(outer):
        y = g(x)
    x.mul_(2)
    outer.replay()
    assert_same(y, model(x))


def test_a_program_without_inputs_is_the_device_s() -> None:
    weight = torch.randn(3, device="npu")

    def f() -> tuple[Tensor, Tensor]:
        return torch.ones(3, device="npu") * 2, torch.arange(3, device="npu") + weight

    g = compiled(f)
    with counted() as since:
        for _ in range(5):
            assert_same(g(), f())
    assert since.replays == 3, reasons()


def test_a_program_that_begins_on_the_host() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.exp(x.npu() * 2) + 1

    g, held, want = compiled(f), [], []
    for _ in range(5):
        x = torch.randn(8)
        held.append(g(x))
        want.append(f(x))
    assert_same(held, want)
    assert any("a tensor on the cpu" in reason for reason in reasons())


def test_turns_one_in_another_follow_one_another() -> None:
    """Each on a stream of its own: the inner one after what the outer one was given, the outer one after the inner."""
    turn, outer, inner = _C.Turn("npu"), torch.npu.Stream(), torch.npu.Stream()
    x = torch.ones(8, device="npu")
    torch.npu.synchronize()
    for _ in range(3):  # with and without marks of turns before
        done = [torch.npu.Event(enable_timing=True) for _ in range(3)]
        with torch.npu.stream(outer):
            turn.take()
            for _ in range(20):
                x.exp()
            done[0].record()
            with torch.npu.stream(inner):
                turn.take()
                x.exp()
                done[1].record()
                for _ in range(20):
                    x.exp()
                turn.leave()
            x.exp()
            done[2].record()
            turn.leave()
        torch.npu.synchronize()
        assert 0 < done[0].elapsed_time(done[1]) < done[0].elapsed_time(done[2])
        assert done[1].elapsed_time(done[2]) > done[0].elapsed_time(done[1])  # after all of the inner one's


@pytest.mark.parametrize("change", ["t_", "squeeze_", "as_strided_", "resize_"])
def test_a_tensor_of_the_caller_s_that_is_laid_out_anew_is_the_caller_s(change: str) -> None:
    """Dynamo keeps such calls out; other front ends hand them to the backend."""
    arguments = {"t_": (), "squeeze_": (0,), "as_strided_": ((3, 2), (1, 3)), "resize_": ((2, 2),)}[change]

    def f(x: Tensor) -> Tensor:
        y = getattr(x.mul_(2), change)(*arguments)
        return y.add_(1) * 3

    def program() -> torch.fx.GraphModule:
        graph = torch.fx.Graph()
        x = graph.placeholder("x")
        twice = graph.call_function(torch.ops.aten.mul_.Tensor, (x, 2))
        changed = graph.call_function(getattr(torch.ops.aten, change).default, (twice, *arguments))
        if change == "squeeze_":
            changed.target = torch.ops.aten.squeeze_.dim
        more = graph.call_function(torch.ops.aten.add_.Tensor, (changed, 1))
        graph.output((graph.call_function(torch.ops.aten.mul.Tensor, (more, 3)),))
        return torch.fx.GraphModule({}, graph)

    shape = (1, 6) if change == "squeeze_" else (2, 3)
    g = graphmode_backend(program(), [torch.randn(shape, device="npu")])
    for _ in range(5):
        x = torch.randn(shape, device="npu")
        mine = x.clone()
        (got,), want = g(x), f(mine)
        assert_same(got, want)
        assert x.shape == mine.shape and x.stride() == mine.stride()
        assert_same(x, mine)
    assert any("changes the size or the memory" in reason for reason in reasons())
