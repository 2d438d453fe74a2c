"""Option `verify`: a new graph is replayed beside eager on copies; one that differs is never used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphmode

from . import ops
from .ways import Way, assert_same, both_ways, counted, reasons


class Steps(nn.Module):
    """Writes a buffer, draws random numbers, computes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.line = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum(0)
        return self.line(x) + torch.rand(3) * self.seen


@pytest.mark.cpu("a graph of a device replays on its own memory only, so it can't be verified on copies")
@both_ways()
def test_verify_changes_nothing_for_the_caller(way: Way) -> None:
    net, beside = Steps(), Steps()
    beside.load_state_dict(net.state_dict())
    g = way(net, verify=True)
    with torch.no_grad(), counted() as since:
        for i in range(6):
            x = torch.randn(2, 3)
            torch.manual_seed(i)
            got = g(x)
            after = torch.get_rng_state()
            torch.manual_seed(i)
            assert_same(got, beside(x))
            assert torch.equal(after, torch.get_rng_state())
            assert_same(net.seen, beside.seen)
    assert since.captures == 1 and since.replays == 4
    assert not graphmode.report().notes


@pytest.mark.cpu("a graph of a device replays on its own memory only, so it can't be verified on copies")
def test_a_graph_that_differs_is_refused_with_a_reason() -> None:
    """The null device replays the results of the capture: wrong as soon as numbers are drawn."""
    g = torch.compile(lambda x: x + torch.rand(3), backend="graphmode", options={"verify": True, "device": "null"})
    with torch.no_grad(), counted() as since:
        for i in range(5):
            torch.manual_seed(i)
            got = g(torch.ones(3))
            torch.manual_seed(i)
            assert_same(got, torch.ones(3) + torch.rand(3))
    assert since.captures == 0 and since.replays == 0 and since.live_calls == 4
    assert any("verify" in r and "differs" in r for r in reasons())


def test_an_opaque_op_is_not_run_twice() -> None:
    ops.Switches.seen = []
    g = torch.compile(lambda x: ops.note(x) * 2, backend="graphmode", options={"verify": True})
    with torch.no_grad():
        for _ in range(5):
            g(torch.ones(2))
    assert len(ops.Switches.seen) == 5
    assert any("not verified" in note for note in graphmode.report().notes)


@pytest.mark.cpu("a graph of a device replays on its own memory only, so it can't be verified on copies")
def test_a_run_that_raises_on_the_copies_leaves_modes_as_they_were() -> None:
    """Each run moves the index on; the table ends after the call that captures, so only the check on copies raises."""

    def f(x: Tensor, i: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            i.add_(1)
            return torch.nn.functional.embedding(i, x @ x)

    g = torch.compile(f, backend="graphmode", options={"verify": True})
    i, beside = torch.tensor([-1]), torch.tensor([-1])
    with torch.no_grad(), counted() as since:
        for _ in range(2):
            assert_same(g(torch.ones(2, 2), i), f(torch.ones(2, 2), beside))
            assert not torch.is_autocast_enabled("cpu") and torch.autocast_increment_nesting() == 1
            assert torch.autocast_decrement_nesting() == 0
    assert since.captures == 1
    assert any("not verified: IndexError" in note for note in graphmode.report().notes)


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [-0.0, 0.0], [float("inf"), -1.0]])
def test_verify_compares_bits(values: list[float]) -> None:
    g = torch.compile(lambda x: x * 1, backend="graphmode", options={"verify": True})
    with torch.no_grad(), counted() as since:
        for _ in range(4):
            g(torch.tensor(values))
    assert since.replays == 2
