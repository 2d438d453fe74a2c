"""Which sizes are captured: after how many live calls, again after how many, and what is too large to try."""

from __future__ import annotations

import torch

import graphmode
from graphmode.runtime.admission import Admission


def calls_until_wanted(admission: Admission, key: int) -> int:
    return next(n for n in range(1, 10_000) if admission.wants(key))


def test_a_size_is_wanted_after_its_live_calls() -> None:
    assert [calls_until_wanted(Admission(n), 1) for n in (0, 1, 3)] == [1, 2, 4]


def test_a_size_whose_graph_did_not_pay_waits_four_times_as_long_each_time() -> None:
    admission, waits = Admission(1), []
    for _ in range(4):
        waits.append(calls_until_wanted(admission, 1))
        admission.captured(1)
        admission.dropped(1, replays=3)
    assert waits == [2, 5, 17, 65]
    assert calls_until_wanted(admission, 2) == 2


def test_a_size_whose_graph_paid_is_captured_as_before() -> None:
    admission = Admission(1)
    for replays in (0, 100, 100):
        admission.captured(1)
        admission.dropped(1, replays)
    assert calls_until_wanted(admission, 1) == 2


def test_what_is_stale_is_captured_at_once() -> None:
    admission = Admission(3)
    admission.captured(1)
    admission.dropped(1, 0)
    admission.stale(1)
    assert admission.wants(1)


def test_more_sizes_than_graphs_do_not_capture_for_ever() -> None:
    f = graphmode.compile(lambda x: x * 2 + 1, max_graphs=4)
    with torch.no_grad():
        before = graphmode.report().captures
        for i in range(960):
            x = torch.ones(i % 12 + 1)
            assert torch.equal(f(x), x * 2 + 1)
        captures = graphmode.report().captures - before
        assert 12 <= captures <= 60  # 480 where every second call of a size captures
        (put_off,) = (f for f in graphmode.report().fallbacks if "dropped before it paid" in f.reason)
        assert put_off.count > 400 and "max_graphs" in put_off.reason
        for _ in range(40):
            f(torch.ones(99))  # a new size still gets its graph
    assert graphmode.report().captures - before == captures + 1


def test_require_captures_whatever_was_dropped() -> None:
    f = graphmode.compile(lambda x: x * 3 + 1, max_graphs=2, require=True)
    with torch.no_grad():
        for i in range(60):
            x = torch.ones(i % 6 + 1)
            assert torch.equal(f(x), x * 3 + 1)


def attend(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.t()).exp() @ x


def test_a_size_beyond_one_over_the_cap_is_not_captured_to_find_out() -> None:
    f = torch.compile(
        lambda x: (x @ x.t()).exp() @ x, backend="graphmode", options={"max_bytes": 300_000}, dynamic=True
    )
    tried = graphmode.report()
    with torch.no_grad():
        for rows in (300, 400, 500, 100):
            for _ in range(3):
                x = torch.ones(rows, 8)
                assert torch.equal(f(x), attend(x))
    now = graphmode.report()
    assert now.captures - tried.captures == 1  # of 100 rows
    (reason,) = (f for f in now.fallbacks if "max_bytes" in f.reason)
    assert reason.count == 6
    assert now.capture_seconds > tried.capture_seconds
