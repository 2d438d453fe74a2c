"""C3: outputs are the caller's. A later call never changes them, and they never lie in the arena."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

import graphmode

from .ways import Way, assert_same, both_ways, replayed


def many(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.exp(x)
    z = y * 2 + x
    return y, z, z[1:], z.t(), y.sum(), torch.sort(x).values


@both_ways()
def test_c3_twelve_held_outputs_never_change(way: Way) -> None:
    g = way(many)
    held, wanted = [], []
    with replayed(10):
        for _ in range(12):
            x = torch.randn(4, 4)
            held.append(g(x))
            wanted.append(many(x))
        assert_same(held, wanted)


@both_ways()
def test_c3_outputs_survive_other_graphs_and_reset(way: Way) -> None:
    g, other = way(many), way(lambda x: (torch.tanh(x) * 3).cumsum(0) + x)
    x = torch.randn(4, 4)
    with replayed(8):
        for _ in range(6):
            kept = g(x)
            other(torch.randn(64, 64))
    graphmode.reset()
    del g, other
    gc.collect()
    filler = [torch.full((4, 4), 9.0) for _ in range(64)]
    assert_same(kept, many(x))
    assert len(filler) == 64


@both_ways()
def test_c3_a_caller_may_write_what_it_got(way: Way) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        constant = torch.arange(3.0)
        return x + constant, constant * 1

    g = way(f)
    with replayed(4):
        for _ in range(6):
            x = torch.randn(3)
            got = g(x)
            assert_same(got, f(x))
            for t in got:
                t.fill_(-1)


@both_ways()
def test_c3_views_of_one_output_share_its_memory_as_eager_s_do(way: Way) -> None:
    g = way(many)
    for _ in range(5):
        _, z, tail, turned, _, _ = g(torch.randn(4, 4))
        z.zero_()
        assert not tail.any() and not turned.any()
        assert tail.data_ptr() == z.data_ptr() + 16


@both_ways()
def test_c3_an_output_that_is_an_input_is_that_object(way: Way) -> None:
    g = way(lambda x, y: (x.mul_(2), y, x + y, y[0]))
    with replayed(3):
        for _ in range(5):
            x, y = torch.randn(3), torch.randn(3)
            a, b, _, d = g(x, y)
            assert a is x and b is y and d.data_ptr() == y.data_ptr()


@both_ways()
def test_c3_a_returned_view_of_an_input_follows_it(way: Way) -> None:
    g = way(lambda x: (x.t(), x[1], x.view(-1)[2:]))
    for _ in range(5):
        x = torch.randn(3, 4)
        views = g(x)
        x.fill_(5)
        assert all(bool((v == 5).all()) for v in views)
