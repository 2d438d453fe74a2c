"""A program whose operands come from outside: which region serves a call, and after how many calls it has a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch import Tensor

from graphmode.options import Options
from graphmode.runtime.outside import How, Operands, Resolver, Step
from graphmode.runtime.region import Region

from .programs import traced

OUTSIDE = torch.full((4,), 2.0)


class FromOutside(Resolver):
    """`x * OUTSIDE + 1`, where the program as it is computes `x + 1`."""

    def __init__(self) -> None:
        self.answer: How | None = None
        self.comes_again = True
        self._direct = self.renewed()

    @staticmethod
    def renewed() -> fx.GraphModule:
        return traced(lambda x, y: (x * y + 1,), OUTSIDE, OUTSIDE)

    def renew(self) -> None:
        self._direct = self.renewed()

    @property
    def direct(self) -> fx.GraphModule:
        return self._direct

    def operands(self, args: Sequence[Any]) -> Operands | How:
        return self.answer or Operands([OUTSIDE], self.comes_again)


class Steps:
    """A step, and the regions that it made."""

    def __init__(self) -> None:
        self.made: list[Region] = []
        self.resolver = FromOutside()
        self.own = self._region(traced(lambda x: (x + 1,), OUTSIDE))
        self.step = Step(self.own, self.resolver, self._direct)

    def _region(self, gm: fx.GraphModule, **changed: Any) -> Region:
        return Region(gm, dataclasses.replace(Options(), **changed), lambda args: gm(*args))

    def _direct(self, gm: fx.GraphModule, **changed: Any) -> Region:
        self.made.append(self._region(gm, **changed))
        return self.made[-1]

    def run(self, x: Tensor, times: int = 1) -> None:
        with torch.no_grad():
            for _ in range(times):
                (got,) = self.step(x)
                torch.testing.assert_close(got, x + 1 if self.resolver.answer else x * OUTSIDE + 1, rtol=0, atol=0)


@pytest.fixture
def steps() -> Steps:
    return Steps()


def counted(region: Region) -> tuple[int, int, int]:
    """Warm-ups, captures, replays."""
    total = region.count()
    return total.warmups, total.captures, total.replays


def test_a_size_that_comes_again_is_captured_at_once(steps: Steps) -> None:
    steps.run(torch.randn(4), times=4)
    assert [counted(r) for r in steps.made] == [(1, 1, 2)]
    assert counted(steps.own) == (0, 0, 0)


def test_one_that_need_not_has_a_region_of_its_own_and_waits(steps: Steps) -> None:
    steps.run(torch.randn(4), times=2)
    steps.resolver.comes_again = False
    steps.run(torch.randn(4), times=16)
    assert [counted(r) for r in steps.made] == [(1, 1, 0), (16, 0, 0)]
    steps.run(torch.randn(4), times=3)
    assert [counted(r) for r in steps.made] == [(1, 1, 0), (16, 1, 2)]
    steps.resolver.comes_again = True
    steps.run(torch.randn(4))
    assert [counted(r) for r in steps.made] == [(1, 1, 1), (16, 1, 2)]


def test_sizes_without_end_take_no_graph_from_those_that_come_again(steps: Steps) -> None:
    steps.run(torch.randn(4), times=3)
    steps.resolver.comes_again = False
    for rows in range(1, 200):
        steps.run(torch.randn(rows, 4))
    steps.resolver.comes_again = True
    steps.run(torch.randn(4))
    assert counted(steps.made[0]) == (1, 1, 2)
    assert sum(r.count().evictions for r in steps.made) == 0


def test_a_new_direct_program_has_new_regions(steps: Steps) -> None:
    steps.run(torch.randn(4), times=3)
    steps.resolver.renew()
    steps.run(torch.randn(4), times=3)
    assert [counted(r) for r in steps.made] == [(1, 1, 1), (1, 1, 1)]


def test_what_the_direct_program_can_not_serve_runs_as_it_is(steps: Steps) -> None:
    steps.resolver.answer = How.LIVE
    steps.run(torch.randn(4), times=3)
    assert counted(steps.own) == (3, 0, 0)
    steps.resolver.answer = How.AS_IT_IS
    steps.run(torch.randn(4), times=3)
    assert counted(steps.own) == (4, 1, 1)
    assert steps.made == []
