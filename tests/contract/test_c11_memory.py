"""C11: memory of graphs is known before capture ends, stays under the cap, and is given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphmode
from graphmode import _C
from graphmode.inspect.counters import ledger

from .ways import Way, assert_same, both_ways, replayed


def chain(x: Tensor) -> Tensor:
    y = torch.exp(x)
    z = y @ y
    return (z + y).relu().sum(0)


def compiled_and_run(way: Way, n: int = 64) -> Callable[..., Tensor]:
    g = way(chain)
    for _ in range(4):
        g(torch.randn(n, n))
    return g


@pytest.mark.cpu("it measures the CPU's arena")
@both_ways()
def test_c11_the_arena_is_what_the_plan_said(way: Way) -> None:
    kept = compiled_and_run(way)
    (graph,) = [g for r in ledger.regions() for g in r.graphs.values()]
    predicted, held = graph.bytes(), graphmode.report().bytes
    assert held.arena == predicted.arena == _C.arena_bytes()
    assert held.fixed == predicted.fixed and predicted.outputs == 64 * 4
    assert 2 * 64 * 64 * 4 <= predicted.arena <= 3 * 64 * 64 * 4 + 256
    assert kept is not None


@pytest.mark.cpu("it measures the CPU's arena")
@both_ways()
def test_c11_graphs_share_one_arena(way: Way) -> None:
    kept = [compiled_and_run(way, n) for n in (32, 64, 48, 16)]
    largest = max(g.bytes().arena for r in ledger.regions() for g in r.graphs.values())
    assert graphmode.report().bytes.arena == largest
    assert _C.arena_blocks() == 1
    assert len(kept) == 4


@pytest.mark.cpu("it measures the CPU's arena")
def test_c11_the_arena_is_as_large_as_the_largest_graph_alive_needs() -> None:
    kept = [compiled_and_run(graphmode.compile, n) for n in (32, 64, 16)]
    middle, large, small = (r for r in ledger.regions() if r.graphs)
    needs = {r: g.bytes().arena for r in ledger.regions() for g in r.graphs.values()}
    assert needs[small] < needs[middle] < needs[large] == _C.arena_bytes()
    small.clear()  # as when its model dies: the memory that others replay in stays
    assert _C.arena_bytes() == needs[large]
    large.clear()
    assert _C.arena_bytes() == 0
    with replayed(1):
        x = torch.randn(32, 32)
        assert_same(kept[0](x), chain(x))
    assert _C.arena_bytes() == needs[middle]


@both_ways()
def test_c11_reset_gives_everything_back_and_calls_go_on(way: Way) -> None:
    g = way(chain)
    x = torch.randn(64, 64)
    for _ in range(4):
        g(x)
    graphmode.reset()
    report = graphmode.report()
    assert (report.graphs, report.bytes.total, _C.arena_bytes()) == (0, 0, 0)
    with replayed(2):
        for _ in range(4):
            assert_same(g(x), chain(x))


@pytest.mark.parametrize("way", ["torch", "graphmode"])
def test_c11_a_model_that_dies_gives_its_graphs_and_the_arena_back(way: str) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    g = torch.compile(net, backend="graphmode") if way == "torch" else graphmode.compile(net)
    with torch.no_grad():
        for _ in range(4):
            g(torch.randn(32, 64))
    dead = weakref.ref(net[0].weight)
    del g, net
    gc.collect()
    assert dead() is None
    report = graphmode.report()
    assert (report.graphs, report.bytes.total) == (0, 0)


@both_ways()
def test_c11_dropping_what_was_compiled_gives_graphs_back(way: Way) -> None:
    def scope() -> None:
        k = torch.randn(3)
        g = way(lambda x: chain(x).sum() + k.sum())
        for _ in range(4):
            g(torch.randn(64, 64))

    scope()
    torch._dynamo.reset()
    gc.collect()
    report = graphmode.report()
    assert (report.graphs, report.bytes.total) == (0, 0)


@pytest.mark.cpu("its caps are smaller than what a device's allocator gives at once")
@both_ways()
def test_c11_the_cap_holds_for_the_sum_of_all_graphs(way: Way) -> None:
    cap = 48 * 1024
    kept = []
    for n in (16, 32, 64, 128, 48):
        g = way(chain, max_bytes=cap)
        x = torch.randn(n, n)
        for _ in range(4):
            assert_same(g(x), chain(x))
        kept.append(g)
        assert graphmode.report().bytes.total <= cap
    assert graphmode.report().graphs >= 4


def test_c11_a_replay_keeps_no_input_and_no_output_alive() -> None:
    g = torch.compile(lambda x: (torch.exp(x), x.t()), backend="graphmode")
    for _ in range(4):
        g(torch.randn(8, 8))
    x = torch.randn(8, 8)
    y, _ = g(x)
    dead = weakref.ref(x), weakref.ref(y)
    storages = x.untyped_storage()._weak_ref(), y.untyped_storage()._weak_ref()
    del x, y, _
    assert dead[0]() is None and dead[1]() is None
    assert all(torch.UntypedStorage._expired(s) for s in storages)
    for s in storages:
        torch.UntypedStorage._free_weak_ref(s)
