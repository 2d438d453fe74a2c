"""C6: what cannot be captured runs live at every call: never run at capture and dropped at replay."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from .ops import Switches
from .ways import Way, assert_same, beside_eager, both_ways, replayed

ops = torch.ops.gm_contract


@pytest.fixture(autouse=True)
def dynamic_ops_in_the_graph() -> Iterator[None]:
    Switches.seen = []
    with torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True):
        yield


LIVE: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: torch.exp(x) * x.sum().item() + 1,
    "item as a size": lambda x: torch.zeros(int(x[0].item())) + x.sum(),
    "nonzero": lambda x: torch.nonzero(torch.relu(x - 2)) * 2,
    "mask": lambda x: x[x > 2].sum() + torch.exp(x),
    "unique": lambda x: torch.unique(torch.floor(x / 2)) + 1,
    "masked_select": lambda x: torch.masked_select(x, x > 2) * 2,
    "a number from a custom op": lambda x: torch.exp(x) * ops.total(x),
    "a tensor and a number from a custom op": lambda x: ops.with_total(x)[0] * ops.with_total(x)[1],
    "equal": lambda x: x + 1 if torch.equal(x, x.flip(0)) else x - 1,
    "repeat_interleave": lambda x: torch.repeat_interleave(x, x.to(torch.int64)),
}


def rising(i: int) -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0]) + i % 3


@both_ways()
@pytest.mark.parametrize("name", LIVE)
def test_c6_a_value_read_at_capture_is_not_frozen(way: Way, name: str) -> None:
    beside_eager(way, LIVE[name], [(rising(i),) for i in range(9)])


@both_ways()
def test_c6_what_lies_around_a_break_is_replayed(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        y = torch.exp(x) + 1
        z = torch.nonzero(y > 3)
        return y.sum() + z.sum()

    with replayed(6) as since:
        beside_eager(way, f, [(rising(i),) for i in range(9)])
    assert since.breaks >= 7


@pytest.mark.cpu("a custom op is a break in a device's graph, and there is no other call")
@both_ways()
@pytest.mark.parametrize("between", [False, True])
def test_c6_an_opaque_op_runs_once_at_each_call(way: Way, between: bool) -> None:
    def f(x: Tensor) -> Tensor:
        y = ops.note(torch.exp(x) if between else x)
        return y * 2 if between else y

    Switches.seen = []
    g = way(f)
    with replayed(4):
        for i in range(7):
            x = torch.full((2,), float(i))
            assert_same(g(x), (torch.exp(x) + 1) * 2 if between else x + 1)
    assert len(Switches.seen) == 7


@both_ways()
def test_c6_an_effect_without_a_result_is_not_dropped(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        ops.note_only(x)
        return x * 2

    g = way(f)
    for i in range(7):
        g(torch.full((1,), float(i)))
    assert Switches.seen == [float(i) for i in range(7)]


@both_ways()
def test_c6_python_code_that_dynamo_leaves_out_runs_at_each_call(way: Way) -> None:
    seen: list[float] = []

    @torch._dynamo.disable
    def callback(x: Tensor) -> Tensor:
        seen.append(float(x.sum()))
        return x + 1

    g = way(lambda x: callback(torch.exp(x)) * 2)
    with replayed(5):
        for i in range(7):
            x = torch.full((2,), float(i))
            assert_same(g(x), (torch.exp(x) + 1) * 2)
    assert len(seen) == 7


@both_ways()
def test_c6_a_custom_op_that_writes_its_argument_writes_it_at_each_call(way: Way) -> None:
    counter = torch.zeros(())
    g = way(lambda x: ops.count_from(counter, x) + 1)
    with replayed(4):
        for i in range(7):
            assert_same(g(torch.ones(2)), torch.full((2,), i + 2.0))
    assert counter.item() == 7


@both_ways()
def test_c6_python_allowed_in_the_graph_runs_at_each_call(way: Way) -> None:
    seen: list[object] = []

    def note(x: Tensor) -> Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):  # Dynamo's own trial run
            seen.append(x.sum().item())
        return x + 1

    torch.compiler.allow_in_graph(note)
    g = way(lambda x: note(torch.exp(x)) * 2)
    with replayed(5) as since:
        for i in range(7):
            x = torch.full((2,), float(i))
            assert_same(g(x), (torch.exp(x) + 1) * 2)
    assert len(seen) == 7
    assert since.breaks >= 6


@both_ways()
def test_c6_an_autograd_function_allowed_in_the_graph_runs_at_each_call(way: Way) -> None:
    state = {"k": 0}

    class Counts(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            state["k"] += not isinstance(x, torch._subclasses.FakeTensor)
            return x + state["k"]

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad

    torch.compiler.allow_in_graph(Counts)
    g = way(lambda x: Counts.apply(torch.exp(x)) * 2)
    for i in range(6):
        x = torch.full((2,), float(i))
        assert_same(g(x), (torch.exp(x) + i + 1) * 2)


@both_ways()
def test_c6_a_function_that_wraps_a_function_of_torch_is_a_user_s_all_the_same(way: Way) -> None:
    seen: list[object] = []

    @functools.wraps(torch.nn.functional.relu)
    def note(x: Tensor) -> Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            seen.append(x.sum().item())
        return torch.relu(x)

    torch.compiler.allow_in_graph(note)
    g = way(lambda x: note(x) + 1)
    for i in range(5):
        g(torch.full((2,), float(i)))
    assert len(seen) == 5
