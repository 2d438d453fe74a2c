"""Counters, the ledger and the report: sums, equal fall-backs together, nothing lost at death or kept after clear."""

from __future__ import annotations

import gc

import pytest
import torch

import graphmode
from graphmode.errors import FallbackError
from graphmode.inspect.counters import Counters, ledger
from graphmode.inspect.report import Bytes, summarise
from graphmode.options import Options
from graphmode.runtime.region import Region


def region(**options: object) -> Region:
    gm = torch.fx.symbolic_trace(lambda x: (x + 1,))
    return Region(gm, Options(**options), lambda args: gm(*args))  # type: ignore[arg-type]


def test_equal_fall_backs_are_counted_together_and_others_apart() -> None:
    c = Counters()
    for _ in range(3):
        c.fall_back("why", "op", "line")
    c.fall_back("why", "op", "other line")
    assert [(f.line, f.count) for f in c.fallbacks.values()] == [("line", 3), ("other line", 1)]


def test_sums_add_every_field() -> None:
    a, b = Counters(1, 2, 3, 4, 5, 6, 7, 8.0, 9.0), Counters(1, 1, 1, 1, 1, 1, 1, 1.0, 1.0)
    a.fall_back("x", count=2)
    b.fall_back("x")
    b.fall_back("y")
    a.add(b)
    assert (a.graphs, a.captures, a.replays, a.breaks, a.live_calls, a.warmups, a.evictions) == (2, 3, 4, 5, 6, 7, 8)
    assert (a.capture_seconds, a.lower_seconds) == (9.0, 10.0)
    assert {f.reason: f.count for f in a.fallbacks.values()} == {"x": 3, "y": 1}


def test_a_report_sums_and_prints_what_it_says() -> None:
    c = Counters(replays=1234)
    c.fall_back("too hard", None, "net.py:3 in forward: y")
    report = summarise([c, Counters(replays=1)], Bytes(arena=4096, fixed=64, outputs=7))
    assert report.replays == 1235 and report.bytes.total == 4160
    text = str(report)
    assert "1,235" in text and "too hard" in text and "net.py:3" in text


def test_the_ledger_counts_a_region_alive_and_gone() -> None:
    before = graphmode.report()
    r = region()
    for _ in range(6):
        r.run(torch.ones(2))
    alive = graphmode.report()
    assert (alive.captures - before.captures, alive.replays - before.replays) == (1, 4)
    del r
    gc.collect()
    gone = graphmode.report()
    assert (gone.captures, gone.replays, gone.warmups) == (alive.captures, alive.replays, alive.warmups)
    assert gone.graphs == alive.graphs - 1


def test_clear_zeroes_everything_and_regions_go_on() -> None:
    r = region()
    for _ in range(4):
        r.run(torch.ones(2))
    graphmode.reset()
    report = graphmode.report()
    assert (report.graphs, report.captures, report.replays, report.warmups) == (0, 0, 0, 0)
    for _ in range(4):
        assert torch.equal(r.run(torch.ones(2))[0], torch.full((2,), 2.0))
    assert (graphmode.report().captures, graphmode.report().replays) == (1, 2)


def test_regions_are_listed_oldest_first() -> None:
    kept = [region() for _ in range(3)]
    numbers = [r.number for r in ledger.regions()]
    assert numbers == sorted(numbers) and {r.number for r in kept} <= set(numbers)


def test_a_fall_back_under_require_is_counted_and_raised_with_its_line() -> None:
    r = region(require=True)
    with pytest.raises(FallbackError, match=r"too hard at net\.py:3"):
        r.fall_back("too hard", "op", "net.py:3 in f: y")
    assert r.counters.fallbacks[("too hard", "op", "net.py:3 in f: y")].count == 1


def test_an_input_no_graph_can_take_runs_live_and_is_counted() -> None:
    r = region()
    sparse = torch.eye(2).to_sparse()
    r_gm = Region(torch.fx.symbolic_trace(lambda x: (x * 2,)), Options(), lambda args: args)
    for _ in range(3):
        (got,) = r_gm.run(sparse)
        assert torch.equal(got.to_dense(), torch.eye(2) * 2)
    (fallback,) = r_gm.counters.fallbacks.values()
    assert fallback.count == r_gm.counters.live_calls == 3 and "sparse" in fallback.reason
    assert not r.counters.fallbacks
