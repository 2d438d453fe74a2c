"""Breaks are found with their reasons, and a program cut at them gives what the whole one gives, in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphmode.program.breaks import break_reason, find_breaks
from graphmode.program.parts import Live, Stretch, cut
from graphmode.program.written_arguments import use_written_arguments

from .programs import aten, traced

X = torch.tensor([1.0, 0.0, 2.0])


def program() -> torch.fx.GraphModule:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a = x.exp()
        x.add_(1)
        b = aten.flip.default(a, [0])  # stands for a break
        c = b * y
        x.mul_(2)
        d = aten.flip.default(c, [0])
        return c, d + a, x * 1

    gm = traced(f, X, X)
    use_written_arguments(gm)
    return gm


def flips(gm: torch.fx.GraphModule) -> dict[torch.fx.Node, str]:
    return {n: "flip" for n in gm.graph.nodes if n.target is aten.flip.default}


def run_whole(parts_of: torch.fx.GraphModule, cuts: dict[torch.fx.Node, str]) -> tuple[list[Tensor], Tensor]:
    parts = cut(parts_of, cuts)
    parts.run_stretch = [p.gm if isinstance(p, Stretch) else None for p in parts.parts]
    x = X.clone()
    return list(parts(x, X + 3)), x


def test_parts_take_turns_and_give_what_the_whole_gives() -> None:
    gm = program()
    x = X.clone()
    want = gm(x, X + 3)
    got, mine = run_whole(gm, flips(gm))
    assert [type(p) for p in cut(gm, flips(gm)).parts] == [Stretch, Live, Stretch, Live, Stretch]
    torch.testing.assert_close([*got, mine], [*want, x], rtol=0, atol=0)


def test_a_break_first_last_and_in_a_row() -> None:
    gm = program()
    nodes = [n for n in gm.graph.nodes if n.op == "call_function"]
    x = X.clone()
    want = [*gm(x, X + 3), x]
    for chosen in (nodes[:1], nodes[-1:], nodes[1:4], nodes, []):
        got, mine = run_whole(gm, dict.fromkeys(chosen, "chosen"))
        torch.testing.assert_close([*got, mine], want, rtol=0, atol=0)


def test_a_stretch_takes_what_it_uses_and_gives_what_others_use() -> None:
    gm = program()
    stretches = [p for p in cut(gm, flips(gm)).parts if isinstance(p, Stretch)]
    assert [len(s.inputs) for s in stretches] == [1, 3, 3]
    assert [len(s.outputs) for s in stretches] == [1, 1, 2]
    assert all(s.computes() for s in stretches)


@pytest.mark.parametrize(
    ("op", "breaks"),
    [
        (aten.nonzero.default, True),
        (aten._local_scalar_dense.default, True),
        (aten.masked_select.default, True),
        (aten.equal.default, True),
        (aten.add.Tensor, False),
        (aten.bernoulli_.float, False),
    ],
)
def test_reasons_of_ops(op: torch._ops.OpOverload, breaks: bool) -> None:
    graph = torch.fx.Graph()
    reason = break_reason(graph.call_function(op, (graph.placeholder("x"),)))
    assert (reason is not None) == breaks
    assert not breaks or op.name().split(".")[0] in str(reason)


def test_indexing_by_numbers_is_no_break_and_by_a_mask_is_one() -> None:
    numbers = traced(lambda x: x[torch.tensor([0, 2])] + 1, X)
    assert not find_breaks(numbers)
    graph = torch.fx.Graph()
    node = graph.call_function(aten.index.Tensor, (graph.placeholder("x"), [graph.placeholder("mask")]))
    assert break_reason(node) is not None


def collective(waits: bool, begins: bool = True) -> torch.fx.GraphModule:
    """A program that begins a collective, waits for one, or both."""
    graph, value = torch.fx.Graph(), {"val": X}
    node = graph.placeholder("x")
    node.meta.update(value)
    group = torch.ops._c10d_functional
    if begins:
        node = graph.call_function(group.all_reduce.default, (node, "sum", "0"))
        node.meta.update(value)
    if waits:
        node = graph.call_function(group.wait_tensor.default, (node,))
        node.meta.update(value)
    graph.output((node,))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def test_a_device_s_graph_holds_a_collective_with_the_wait_for_it_or_neither() -> None:
    assert not find_breaks(collective(waits=True), "cpu")
    for part in (collective(waits=False), collective(waits=True, begins=False)):
        (reason,) = find_breaks(part, "cpu").values()
        assert "waited for elsewhere" in reason


def test_a_graph_of_the_host_holds_no_other_device_s_work() -> None:
    gm = traced(lambda x: x * 2, X)
    (node,) = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert not find_breaks(gm)
    with torch._subclasses.FakeTensorMode():
        node.meta["val"] = torch.empty(3, device="cuda")
    assert "a tensor on the cuda" in find_breaks(gm)[node]
