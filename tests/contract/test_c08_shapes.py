"""C8: shapes never seen make new graphs up to a cap, least recently used out first; never eager for ever."""

from __future__ import annotations

import os
import resource

import pytest
import torch
from torch import Tensor

import graphmode

from .ways import Way, assert_same, beside_eager, both_ways, counted, replayed


def f(x: Tensor) -> Tensor:
    return torch.exp(x) * 2 + x.sum()


@both_ways()
def test_c8_a_storm_of_two_hundred_sizes_is_always_captured_and_stays_flat(way: Way) -> None:
    g = way(f, max_graphs=8)
    sizes = range(3, 203)
    with counted() as since:
        for n in sizes:
            for _ in range(3):
                x = torch.randn(n)
                assert_same(g(x), f(x))
    report = graphmode.report()
    assert since.replays >= len(sizes) and since.captures >= len(sizes) and since.live_calls == 0
    assert report.graphs <= 16  # a static and a dynamic program, eight each
    assert since.evictions >= len(sizes) - 16
    on_the_cpu = os.environ.get("GRAPHMODE_TEST_DEVICE", "cpu") == "cpu"
    assert report.bytes.total < 64 * 1024 if on_the_cpu else report.bytes.total <= 20 << 20  # one block of a pool


@both_ways()
def test_c8_memory_is_flat_over_a_second_storm(way: Way) -> None:
    g = way(f, max_graphs=4)

    def storm() -> int:
        for n in range(1000, 1060):
            for _ in range(3):
                g(torch.randn(n))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    storm()
    held, resident = graphmode.report().bytes.total, storm()
    for _ in range(3):
        storm()
    assert graphmode.report().bytes.total == held
    assert storm() - resident < 4096  # KiB


@both_ways()
def test_c8_the_least_recently_used_size_goes_first(way: Way) -> None:
    g = way(f, max_graphs=2, capture_after=0)
    for n in (2, 3, 4):
        g(torch.ones(n))  # Dynamo goes to one dynamic program
    a, b, c = (torch.ones(n) for n in (10, 11, 12))
    for x in (a, b, a, c):
        g(x)
    with counted() as since:
        g(a)
        g(c)
    assert (since.captures, since.replays) == (0, 2)
    with counted() as since:
        for _ in range(5):  # what was dropped before it paid has to come more often
            g(b)
    assert (since.captures, since.evictions) == (1, 1)


@both_ways()
def test_c8_an_evicted_size_is_captured_again(way: Way) -> None:
    g = way(f, max_graphs=2)
    with replayed(20):
        for n in [5, 6, 7, 8] * 3:
            for _ in range(4):
                x = torch.randn(n)
                assert_same(g(x), f(x))


@both_ways()
def test_c8_ranks_dtypes_and_strides_make_graphs_of_their_own(way: Way) -> None:
    forms = [torch.randn(4), torch.randn(4, 4), torch.randn(4, 4).t(), torch.randn(4).double(), torch.randn(8)[::2]]
    with replayed(10):
        beside_eager(way, f, [(x,) for x in forms * 5])


@pytest.mark.cpu("its caps are smaller than what a device's allocator gives at once")
def test_c8_a_graph_over_the_byte_cap_runs_live_and_says_so() -> None:
    g = torch.compile(f, backend="graphmode", options={"max_bytes": 4096})
    small, large = torch.randn(10), torch.randn(10_000)
    for _ in range(5):
        assert_same(g(small), f(small))
        assert_same(g(large), f(large))
    report = graphmode.report()
    assert report.bytes.total <= 4096 and report.replays >= 2
    (reason,) = [r for r in report.fallbacks if "max_bytes" in r.reason]
    assert reason.count >= 3


@both_ways()
def test_c8_a_python_number_that_changes_at_every_call_is_not_eager_for_ever(way: Way) -> None:
    g = way(lambda x, s: torch.exp(x) * s + 1)
    with replayed(6):
        for i in range(16):
            g(torch.randn(3), 0.5 * i)


@both_ways()
@pytest.mark.parametrize("number", [0.5, 3])
def test_c8_python_numbers_that_change_at_every_call_keep_eager_s_results(way: Way, number: float) -> None:
    beside_eager(way, lambda x, s: torch.exp(x) * s, [(torch.randn(3), number * (i + 1)) for i in range(12)])
