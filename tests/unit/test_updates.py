"""Which integers of a program a device may be told at each replay, and what it is told for them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.fx as fx

from graphmode.program.updates import NONE, Updates, find_updates
from graphmode.runtime.signature import signature_of

TABLE = {"updates_tests::attend": ("lengths", "others")}
Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def op() -> Iterator[Any]:
    with torch.library._scoped_library("updates_tests", "FRAGMENT") as library:
        library.define("attend(Tensor x, *, SymInt[]? lengths=None, SymInt[]? others=None, SymInt n=0) -> Tensor")
        yield


def attend(graph: fx.Graph, x: fx.Node, **kwargs: Any) -> fx.Node:
    return graph.call_function(torch.ops.updates_tests.attend.default, (x,), kwargs)


def updates_of(build: Build, integers: int = 2) -> Updates:
    """Of a program of a tensor and of integers; `build` gives its result."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3)
    numbers = [graph.placeholder(f"n{i}") for i in range(integers)]
    for n in numbers:
        n.meta["val"] = 7
    graph.output((build(graph, x, *numbers),))
    return find_updates(fx.GraphModule({}, graph), TABLE)


def call(graph: fx.Graph, function: Any, *args: Any) -> fx.Node:
    return graph.call_function(function, args)


def test_lengths_are_told_in_the_order_of_the_calls() -> None:
    def build(g: fx.Graph, x: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
        first = attend(g, x, lengths=[b, 3, a], n=4)
        return attend(g, first, lengths=[1], others=(call(g, operator.add, a, 1), call(g, torch.sym_max, b, 5)))

    updates = updates_of(build)
    assert updates.told == (1, 2) and len(updates.calls) == 2
    assert updates.told_of([None, 10, 2]) == (10, 2)
    lists = updates.lists([None, 0, 0])(10, 2)
    assert [{k: list(v) for k, v in each.items()} for each in lists] == [
        {"lengths": [2, 3, 10]},
        {"lengths": [1], "others": [11, 5]},
    ]


def test_what_a_length_is_computed_of_may_select_the_graph() -> None:
    def build(g: fx.Graph, x: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
        lengths = [call(g, operator.sub, a, b), call(g, operator.mul, call(g, operator.floordiv, a, 2), 3)]
        return call(g, torch.ops.aten.mul.Tensor, attend(g, x, lengths=lengths), b)

    updates = updates_of(build)
    assert updates.told == (1,)
    assert list(updates.lists([None, 9, 4])(20)[0]["lengths"]) == [16, 30]


@pytest.mark.parametrize(
    "build",
    [
        lambda g, x, a, b: attend(g, x, lengths=[3, 4]),
        lambda g, x, a, b: attend(g, x, lengths=[a, b], n=call(g, operator.add, a, b)),
        lambda g, x, a, b: attend(
            g, call(g, torch.ops.aten.mul.Tensor, x, call(g, operator.add, a, b)), lengths=[a, b]
        ),
        lambda g, x, a, b: (attend(g, x, lengths=[a, b]), a, b),
        lambda g, x, a, b: attend(g, x, lengths=[a, call(g, torch.ops.aten.sym_size.int, x, 0), b]),
        lambda g, x, a, b: attend(g, x, lengths=[call(g, operator.truediv, a, 2), b]),
        lambda g, x, a, b: attend(g, x, lengths=[call(g, operator.mul, a, 1.5), b]),
        lambda g, x, a, b: attend(g, x, lengths=call(g, list, a, b)),
        lambda g, x, a, b: call(g, torch.ops.aten.view.default, x, [a, b]),
    ],
    ids=[
        "no integers",
        "another argument",
        "an operand",
        "results",
        "beside a size",
        "a division",
        "a float",
        "no list",
        "another op",
    ],
)
def test_what_is_not_certain_is_told_to_nobody(build: Build) -> None:
    assert updates_of(build) is NONE


def test_one_use_elsewhere_keeps_one_integer() -> None:
    def build(g: fx.Graph, x: fx.Node, a: fx.Node, b: fx.Node) -> tuple[fx.Node, ...]:
        return attend(g, x, lengths=[a, b]), call(g, operator.add, call(g, operator.neg, b), 1)

    assert updates_of(build).told == (1,)


def test_sums_of_many_lengths() -> None:
    def build(g: fx.Graph, x: fx.Node, *n: fx.Node) -> fx.Node:
        ends = [n[0]]
        for length in n[1:]:
            ends.append(call(g, operator.add, ends[-1], length))
        return attend(g, x, lengths=ends)

    updates = updates_of(build, 2000)
    assert updates.told == tuple(range(1, 2001))
    assert updates.lists([None])(*[1] * 2000)[0]["lengths"][-1] == 2000


def test_what_is_told_selects_no_graph() -> None:
    x = torch.ones(3)
    assert (
        signature_of([x, 5, 6], told=(1,)) == signature_of([x, 7, 6], told=(1,)) != signature_of([x, 5, 7], told=(1,))
    )
    assert signature_of([x, 2**70], told=(1,)) != signature_of([x, 5], told=(1,)) != signature_of([x, True], told=(1,))
