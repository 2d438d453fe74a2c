"""C10: gradients are eager's, and autograd's checks are not lost to a replay."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .ways import Way, assert_same, both_ways, counted, replayed


@both_ways()
def test_c10_gradients_of_weights_and_inputs_are_eager_s(way: Way) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 2))
    twin = copy.deepcopy(net)
    g = way(net)
    for i in range(5):
        x = torch.randn(3, 4, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        torch.manual_seed(i)
        g(x).square().sum().backward()
        torch.manual_seed(i)
        twin(y).square().sum().backward()
        assert_same(x.grad, y.grad)
        assert_same([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])


@both_ways()
def test_c10_calls_with_and_without_gradients_take_turns(way: Way) -> None:
    net = nn.Linear(4, 4)
    g = way(net)
    with replayed(3):
        for i in range(10):
            x = torch.randn(2, 4)
            with torch.set_grad_enabled(i % 2 == 0):
                y = g(x)
            assert y.requires_grad == (i % 2 == 0)
            assert_same(y.detach(), net(x).detach())


@both_ways()
def test_c10_frozen_weights_replay_while_grad_mode_is_on(way: Way) -> None:
    net = nn.Linear(4, 4).requires_grad_(False)
    g = way(net)
    with replayed(4):
        for _ in range(6):
            x = torch.randn(2, 4)
            assert_same(g(x), net(x))
    x = torch.randn(2, 4, requires_grad=True)
    g(x).sum().backward()
    assert_same(x.grad, net.weight.sum(0).expand(2, 4).contiguous())


@both_ways()
def test_c10_double_backward_and_hooks_run(way: Way) -> None:
    g = way(lambda x: x.pow(3).sum())
    seen: list[Tensor] = []
    for _ in range(4):
        x = torch.randn(3, requires_grad=True)
        x.register_hook(seen.append)
        (first,) = torch.autograd.grad(g(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert_same(second, 6 * x.detach())
    with counted() as since:
        g(torch.randn(3, requires_grad=True))
    assert since.live_calls == 1


@both_ways()
def test_c10_a_view_of_an_input_takes_part_in_autograd_as_eager_s_does(way: Way) -> None:
    """An in-place update through it makes the input require gradients, or raises: never a lost gradient."""
    g = way(lambda x: x[:2])
    for _ in range(5):
        w, x = torch.ones(2, requires_grad=True), torch.zeros(3)
        view = g(x)
        try:
            view.mul_(w)
        except RuntimeError:
            continue
        x.sum().backward()
        assert w.grad is not None


@both_ways()
def test_c10_two_views_of_one_result_take_part_in_autograd_as_eager_s_do(way: Way) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y[:2]

    g = way(f)
    for _ in range(5):
        w = torch.ones(2, requires_grad=True)
        y, view = g(torch.zeros(3))
        try:
            view.mul_(w)
        except RuntimeError:
            continue
        assert y.requires_grad, "y changed, and autograd does not know"
