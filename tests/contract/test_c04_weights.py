"""C4: no stale weights. Each way of changing them is seen by the next call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphmode

from .ways import Way, assert_same, both_ways, reasons, replayed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.register_buffer("shift", torch.zeros(4))
        self.rows = [torch.ones(4), torch.ones(4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) + self.shift + self.rows[0]


def load_state_dict(net: Net) -> None:
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})


def assign_state_dict(net: Net) -> None:
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}, assign=True)


def set_data(net: Net) -> None:
    net.first.weight.data = torch.randn(4, 4)


def new_parameter(net: Net) -> None:
    net.second.weight = nn.Parameter(torch.randn(4, 4))


def new_buffer(net: Net) -> None:
    net.shift = torch.randn(4)


def optimiser_step(net: Net) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    with torch.enable_grad():
        net(torch.ones(2, 4)).sum().backward()
    optimiser.step()


def write_in_place(net: Net) -> None:
    with torch.no_grad():
        net.first.bias.add_(3)


def tie(net: Net) -> None:
    net.second.weight = net.first.weight


def new_submodule(net: Net) -> None:
    net.first = nn.Linear(4, 4)


def tensor_in_a_list(net: Net) -> None:
    net.rows[0] = torch.randn(4)


def move_storage(net: Net) -> None:
    net.first.weight.set_(torch.randn(4, 4))


CHANGES: list[Callable[[Net], None]] = [
    load_state_dict, assign_state_dict, set_data, new_parameter, new_buffer, optimiser_step, write_in_place, tie,
    new_submodule, tensor_in_a_list, move_storage,
]  # fmt: skip


@both_ways()
@pytest.mark.parametrize("change", CHANGES)
def test_c4_a_changed_weight_is_seen_by_the_next_call(way: Way, change: Callable[[Net], None]) -> None:
    net = Net()
    g, x = way(net), torch.randn(2, 4)
    with torch.no_grad(), replayed(5):
        for _ in range(5):
            assert_same(g(x), net(x))
        for _ in range(2):
            before = net(x)
            change(net)
            assert not torch.equal(net(x), before) or change is tie
            for _ in range(4):
                assert_same(g(x), net(x))


@both_ways()
def test_c4_tied_weights_written_through_either_name(way: Way) -> None:
    net = Net()
    net.second.weight = net.first.weight
    g, x = way(net), torch.randn(2, 4)
    with torch.no_grad(), replayed(6):
        for i in range(10):
            (net.first if i % 2 else net.second).weight.mul_(0.9)
            assert_same(g(x), net(x))


@both_ways()
def test_c4_a_training_loop_between_calls(way: Way) -> None:
    net = Net()
    twin = copy.deepcopy(net)
    g = way(net)
    for _ in range(6):
        x = torch.randn(2, 4)
        with torch.no_grad():
            assert_same(g(x), twin(x))
        optimiser_step(net)
        optimiser_step(twin)
        net.zero_grad()
        twin.zero_grad()


@both_ways()
@pytest.mark.parametrize("train", [True, False])
def test_c4_training_and_eval_are_told_apart(way: Way, train: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    net.train(train)
    twin = copy.deepcopy(net)
    g = way(net)
    with torch.no_grad(), replayed(2):
        for i in range(9):
            if i in (4, 7):
                net.train(not net.training)
                twin.train(not twin.training)
            x = torch.randn(3, 4)
            torch.manual_seed(i)
            want = twin(x)
            torch.manual_seed(i)
            assert_same(g(x), want)
            assert_same(list(net.buffers()), list(twin.buffers()))


class Labelled(nn.Parameter):
    """A weight class with attributes and a `__torch_function__`, as quantising loaders have them."""

    label = "mine"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@both_ways()
@pytest.mark.parametrize("grad", [False, True])
def test_a_weight_of_a_subclass_is_lowered_as_a_tensor(way: Way, grad: bool) -> None:
    net = nn.Linear(4, 4)
    net.weight = Labelled(torch.randn(4, 4), requires_grad=grad)
    g, x = way(net), torch.randn(2, 4)
    with torch.no_grad(), replayed(6):
        for _ in range(2):
            for _ in range(5):
                assert_same(g(x), net(x))
            net.weight.mul_(2)
    assert reasons() == [] and graphmode.report().notes == {}
