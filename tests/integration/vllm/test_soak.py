"""A few hundred requests of all kinds to a server in graph mode: nothing is left over, and no answer is wrong."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="make install-vllm installs it")

from soak import KINDS, KINDS_OF_STEP, Outcome, Sample, fit, growth, shortfalls, soak

FEW = 3  # graphs of each kind of step; more sizes than that come, of decode steps too, so that some are dropped


@pytest.mark.slow
def test_every_client_gets_its_answer_and_nothing_is_left_over() -> None:
    found = soak(200, max_graphs=FEW, period=0.5)
    assert shortfalls(found) == []
    assert set(found.kinds) == set(KINDS)
    assert found.counted["graphmode_evictions_total"] > 0 and found.counted["graphmode_replays_total"] > 100
    assert FEW <= found.counted["graphmode_graphs"] <= KINDS_OF_STEP * FEW


def sample(done: int, held: int, graphs: float = 0.0) -> Sample:
    """One moment of a soak that never was."""
    return Sample(done, float(done), {"server 1": held}, {}, graphs, 0.0, 0.0, 0.0)


def test_growth_is_that_of_the_last_nine_tenths() -> None:
    slope, height = fit([1.0, 2.0, 4.0], [3.0, 5.0, 9.0])
    assert (slope, height) == pytest.approx((2.0, 3.0))
    still = [sample(done, 1000 if done >= 100 else 10 * done) for done in range(0, 1001, 10)]
    assert growth(Outcome(1000, samples=still)) == pytest.approx(0.0)
    leaks = [sample(done, 1000 + 3 * done + (40 if done % 20 else -40)) for done in range(0, 1001, 10)]
    assert growth(Outcome(1000, samples=leaks)) == pytest.approx(2700, abs=50)


def test_what_falls_short_is_told() -> None:
    probe = ["text", [-0.5]]
    good = Outcome(2, kinds={"whole": 2}, samples=[sample(2, 1, 3.0)], probes=[probe] * 4, max_graphs=3)
    good.counted["graphmode_replays_total"] = 5.0
    assert shortfalls(good) == []
    good.left["num_requests_running"] = 1.0
    good.samples.append(sample(2, 1, 7.0))
    good.probes[3] = ["text", [-0.25]]
    assert [line[:12] for line in shortfalls(good)] == ["at the end n", "the probe's ", "7 graphs, an"]
