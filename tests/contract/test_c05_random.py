"""C5: every replay draws new random numbers from torch's generators, as eager would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import graphmode

from .ways import Way, assert_same, beside_eager, both_ways, replayed

F = torch.nn.functional

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand_like": lambda x: torch.rand_like(x) + x,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.3) * 2,
    "normal_ in place": lambda x: x.normal_(),
    "randint, randperm": lambda x: x + torch.randint(0, 9, x.shape) + torch.randperm(x.shape[0])[:, None],
    "multinomial": lambda x: torch.multinomial(x.abs() + 0.1, 3),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "two draws": lambda x: torch.randn_like(x) * torch.rand(x.shape) + torch.randn(x.shape[0], 1),
    "dropout in attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.4),
    "gumbel softmax": lambda x: F.gumbel_softmax(x),
}


@both_ways()
@pytest.mark.parametrize("name", DRAWS)
def test_c5_seeded_alike_draws_alike(way: Way, name: str) -> None:
    with replayed(3):
        beside_eager(way, DRAWS[name], [(torch.randn(6, 6),) for _ in range(6)])


@both_ways()
def test_c5_unseeded_calls_differ_from_each_other(way: Way) -> None:
    g = way(lambda x: torch.rand_like(x))
    x = torch.zeros(32)
    drawn = [g(x) for _ in range(8)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@both_ways()
def test_c5_replays_and_eager_draw_from_one_stream(way: Way) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    g = way(net)
    with torch.no_grad():
        for _ in range(3):
            g(torch.ones(2, 8))
        torch.manual_seed(1)
        mixed = [g(torch.ones(2, 8)), torch.rand(3), g(torch.ones(2, 8)), torch.rand(3)]
        torch.manual_seed(1)
        assert_same(mixed, [net(torch.ones(2, 8)), torch.rand(3), net(torch.ones(2, 8)), torch.rand(3)])


def test_c5_compile_with_example_inputs_puts_the_generator_back() -> None:
    state = torch.get_rng_state()
    graphmode.compile(lambda x: torch.rand_like(x), torch.zeros(4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.cpu("it captures on the CPU's graph by name")
def test_c5_a_raw_graph_draws_anew_from_the_default_and_from_another_generator() -> None:
    other = torch.Generator().manual_seed(3)
    graph = graphmode.Graph()
    graph.register_generator_state(other)  # as CUDA's graphs ask: else seeding it inside could not be told
    with graph:
        y, z = torch.rand(4), torch.rand(4, generator=other)
    torch.manual_seed(5)
    other.manual_seed(5)
    graph.replay()
    first = y.clone(), z.clone()
    graph.replay()
    torch.manual_seed(5)
    want = [torch.rand(4), torch.rand(4)]
    assert_same([first[0], y], want)
    assert_same([first[1], z], want)
