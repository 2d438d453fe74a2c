"""C7: no silent fall-back. Each has a counter, a reason and the user's line; `require=True` makes it an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import graphmode
from graphmode.errors import FallbackError
from graphmode.inspect.explain import cure

from .ways import Way, assert_same, both_ways, by_torch_compile, counted, reasons

HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def dynamic_ops_in_the_graph() -> Iterator[None]:
    with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        yield


def breaks_at_nonzero(x: Tensor) -> Tensor:
    y = torch.exp(x)
    return torch.nonzero(y > 1) + 1


@both_ways()
def test_c7_a_break_has_a_count_a_reason_an_op_and_the_user_s_line(way: Way) -> None:
    g = way(breaks_at_nonzero)
    for _ in range(5):
        g(torch.ones(3))
    report = graphmode.report()
    found = [f for f in report.fallbacks if "nonzero" in f.reason]
    assert report.breaks >= 3 and sum(f.count for f in found) >= 4
    for f in found:
        assert f.line is not None and f.line.startswith(HERE) and "torch.nonzero(y > 1)" in f.line


@both_ways()
def test_c7_one_break_is_one_row_with_its_op_from_its_first_call_on(way: Way) -> None:
    g = way(breaks_at_nonzero)
    for _ in range(5):
        g(torch.ones(3))
    found = [f for f in graphmode.report().fallbacks if "nonzero" in f.reason]
    assert len(found) == 1 and found[0].op is not None and "nonzero" in found[0].op


@both_ways()
def test_c7_a_call_with_gradients_is_counted(way: Way) -> None:
    w = torch.ones(3, requires_grad=True)
    g = way(lambda x: x * w)
    with counted() as since:
        for _ in range(5):
            g(torch.ones(3)).sum().backward()
    assert since.live_calls == 5
    assert [f.count for f in graphmode.report().fallbacks if "gradient" in f.reason] == [5]


@both_ways()
def test_c7_a_call_that_dynamo_leaves_whole_to_eager_is_counted(way: Way) -> None:
    net = torch.nn.GRU(4, 4)  # Dynamo's default leaves these out
    g = way(net)
    with torch.no_grad(), counted() as since:
        for _ in range(4):
            g(torch.randn(2, 4))
    assert since.replays >= 2 or any("GRU" in r or "RNN" in r.upper() for r in reasons())


@both_ways()
def test_c7_every_call_is_a_warm_up_a_capture_a_replay_or_counted(way: Way) -> None:
    g = way(lambda x: torch.exp(x) + 1)
    before = graphmode.report()
    for i in range(20):
        g(torch.ones(1 + i % 3))
    r = graphmode.report()
    ran = [getattr(r, n) - getattr(before, n) for n in ("warmups", "captures", "replays", "live_calls")]
    assert sum(ran) == 20 and ran[2] >= 12


@both_ways()
def test_c7_python_code_between_two_graphs_is_counted(way: Way) -> None:
    @torch._dynamo.disable
    def callback(x: Tensor) -> Tensor:
        return x + 1

    g = way(lambda x: callback(torch.exp(x)) * 2)
    for _ in range(6):
        g(torch.ones(2))
    counts = [f for f in graphmode.report().fallbacks if f.line and HERE in f.line]
    assert counts and sum(f.count for f in counts) >= 1


@both_ways()
def test_c7_a_function_that_dynamo_fails_to_trace_runs_in_python_and_is_counted(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        x = torch.exp(x)
        x[list(torch.tensor([0, 1])), list(torch.tensor([1, 2]))] = 0  # eager can; Dynamo's fake tensors can't
        return x + 1

    g = way(f)
    for i in range(4):
        assert_same(g(torch.full((2, 3), float(i))), f(torch.full((2, 3), float(i))))
    assert any("Dynamo left a function to Python" in f.reason for f in graphmode.report().fallbacks)


def untraceable_from_five(x: Tensor) -> Tensor:
    y = torch.exp(x)
    if x.shape[0] >= 5:
        y[None][list(torch.tensor([0, 0])), list(torch.tensor([1, 2]))] = 0  # eager can; Dynamo's fake tensors can't
    if x.shape[0] == 6:
        raise ValueError("six")
    return y * 2


@both_ways()
def test_c7_a_call_that_dynamo_fails_to_trace_runs_in_python_and_costs_no_graphs(way: Way) -> None:
    g = way(untraceable_from_five)

    def ask(sizes: list[int]) -> None:
        for n in sizes:
            x = torch.randn(n)
            assert_same(g(x), untraceable_from_five(x))

    ask([2, 3, 3, 4, 4])  # from the second size on they share a program
    with counted() as since:
        ask([5, 3, 4] * 30 + [5] * 30 + [3, 4] * 5)
    assert (since.captures, since.replays) == (0, 70), "the two sizes have their graphs"
    assert since.live_calls == 60
    counts = [f for f in graphmode.report().fallbacks if "Dynamo failed to trace a call" in f.reason]
    assert counts and all(f.line and HERE in f.line for f in counts)


def test_c7_a_model_s_untraceable_calls_take_nothing_from_another_of_its_class() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return untraceable_from_five(x)

    one, other = by_torch_compile(Net()), by_torch_compile(Net(), require=True)
    for n in (2, 2, 2):
        one(torch.ones(n)), other(torch.ones(n))
    for _ in range(10):
        one(torch.ones(5))
    with counted() as since:
        for n in (2, 3, 3, 3):
            other(torch.ones(n))
    assert (since.replays, since.live_calls) == (2, 0)
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
        other(torch.ones(5))


@both_ways()
def test_c7_calls_that_raise_in_eager_too_leave_no_function_in_python(way: Way) -> None:
    g = way(untraceable_from_five)
    for _ in range(3):
        g(torch.ones(2))
    for _ in range(10):
        with pytest.raises(ValueError, match="six"):
            g(torch.ones(6))
    with counted() as since:
        g(torch.ones(2))
    assert since.replays == 1


@both_ways()
def test_c7_require_raises_at_a_break(way: Way) -> None:
    g = way(breaks_at_nonzero, require=True)
    with pytest.raises(FallbackError, match="nonzero"):
        for _ in range(3):
            g(torch.ones(3))


@both_ways()
def test_c7_require_raises_for_gradients_and_the_process_goes_on(way: Way) -> None:
    w = torch.ones(3, requires_grad=True)
    g = way(lambda x: x * w, require=True)
    with pytest.raises(FallbackError, match="gradient"):
        g(torch.ones(3))
    with torch.no_grad():
        for _ in range(4):
            assert_same(g(torch.ones(3)), torch.ones(3))


@both_ways()
def test_c7_require_raises_where_python_runs_between_graphs(way: Way) -> None:
    @torch._dynamo.disable
    def callback(x: Tensor) -> Tensor:
        return x + 1

    g = way(lambda x: callback(torch.exp(x)) * 2, require=True)
    with pytest.raises((FallbackError, torch._dynamo.exc.Unsupported)):
        for _ in range(4):
            g(torch.ones(2))


@both_ways()
def test_c7_require_holds_after_calls_without_an_op(way: Way) -> None:
    g = way(lambda x, early: x if early else torch.exp(x) + 1, require=True)
    for _ in range(3):
        g(torch.ones(2), False)
    for _ in range(8):
        g(torch.ones(2), True)
    with counted() as since:
        for _ in range(5):
            g(torch.ones(3), False)
    assert (since.replays, since.live_calls) == (3, 0)


@both_ways()
def test_c7_require_is_content_with_a_call_that_replays(way: Way) -> None:
    g = way(lambda x: torch.exp(x) * 2, require=True)
    for _ in range(5):
        assert_same(g(torch.ones(3)), torch.exp(torch.ones(3)) * 2)


def test_c7_reset_zeroes_the_counters() -> None:
    g = torch.compile(lambda x: x + 1, backend="graphmode")
    for _ in range(5):
        g(torch.ones(3))
    graphmode.reset()
    r = graphmode.report()
    assert (r.graphs, r.captures, r.replays, r.breaks, r.live_calls, r.warmups, r.fallbacks) == (0, 0, 0, 0, 0, 0, [])


def test_c7_counts_of_a_model_that_died_stay_in_the_sum() -> None:
    import gc

    with counted() as since:
        g = torch.compile(lambda x: x + 1, backend="graphmode")
        for _ in range(5):
            g(torch.ones(3))
        del g
        torch._dynamo.reset()
        gc.collect()
    assert (since.captures, since.replays, since.graphs) == (1, 3, 0)


@both_ways()
def test_c7_require_raises_at_dynamo_s_recompile_limit_and_the_process_goes_on(way: Way) -> None:
    g = way(lambda x, name: x + len(name), require=True)
    with pytest.raises(FallbackError, match="recompile"):
        for i in range(20):
            g(torch.ones(2), "s" * i)
    assert_same(g(torch.ones(2), ""), torch.ones(2))


def test_c7_explain_leaves_what_was_compiled_before_alone() -> None:
    f = lambda x: x * 2  # noqa: E731
    g = torch.compile(f, backend="graphmode")
    for _ in range(3):
        g(torch.ones(2))
    graphmode.explain(f, torch.ones(2))
    before = graphmode.report()
    g(torch.ones(2))
    assert graphmode.report().replays == before.replays + 1


def test_c7_dynamo_s_configuration_is_left_as_it_was() -> None:
    before = torch._dynamo.config.allow_rnn, torch._dynamo.config.record_runtime_overhead
    torch.compile(lambda x: x * 2, backend="graphmode")(torch.ones(2))
    assert before == (torch._dynamo.config.allow_rnn, torch._dynamo.config.record_runtime_overhead)


def if_on_a_tensor(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def item(x: Tensor) -> Tensor:
    return x * x.sum().item()


def to_list(x: Tensor) -> Tensor:
    return x * len((x * 2).tolist())


def pick(x: Tensor) -> Tensor:
    return x[x > 0].exp()


def disabled(x: Tensor) -> Tensor:
    return torch.compiler.disable(torch.exp)(x * 2) + 1


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (if_on_a_tensor, "torch.where"),
        (item, "torch.where"),
        (to_list, "torch.where"),
        (pick, "mask"),
        (disabled, "remove the disable"),
    ],
)
def test_c7_explain_says_what_to_change(program: Callable[[Tensor], Tensor], advice: str) -> None:
    with torch._dynamo.config.patch(capture_scalar_outputs=False, capture_dynamic_output_shape_ops=False):
        found = graphmode.explain(program, torch.ones(4))
    cures = [cure(f.reason) for f in [*found.breaks, *found.dynamo_breaks]]
    assert cures and all(cures) and any(advice in c for c in cures)
