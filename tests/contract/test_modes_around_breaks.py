"""Modes switched inside a program hold across its breaks, at every call, and are left when something raises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from . import ops
from .ways import Way, assert_same, both_ways


@pytest.fixture(autouse=True)
def values_stay_in_the_graph() -> Iterator[None]:
    with (
        torch._dynamo.config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True),
        torch.no_grad(),
    ):
        yield


def cond_inside(x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b = torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))
        return b @ x, x @ x


def item_inside(x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x
        n = x.sum().item()
        return y * n, y @ x


def disabled_inside(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x
        with torch.autocast("cpu", enabled=False):
            n = torch.nonzero(x > 0).shape[0]
            z = x @ x
        return (z + y) @ x + n


def opaque_inside(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return ops.note(x @ x) @ x


@both_ways()
@pytest.mark.parametrize("f", [cond_inside, item_inside, disabled_inside, opaque_inside])
def test_autocast_inside_holds_across_a_break(way: Way, f: object) -> None:
    g = way(f)  # type: ignore[arg-type]
    for i in range(6):
        x = torch.randn(4, 4) + (-1) ** i
        assert_same(g(x), f(x))  # type: ignore[operator]
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
def test_a_mode_is_left_when_a_part_raises() -> None:
    def f(x: Tensor, i: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = x @ x
            n = i.item()
            return y.index_select(0, i.reshape(1)) * n

    g = torch.compile(f, backend="graphmode")
    for i in range(6):
        bad = i > 2 and i % 2
        if bad:
            with pytest.raises(IndexError):
                g(torch.ones(3, 3), torch.tensor(7))
        else:
            assert_same(g(torch.ones(3, 3), torch.tensor(1)), f(torch.ones(3, 3), torch.tensor(1)))
        assert not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "under autograd"])
@pytest.mark.parametrize("bad", [0, 1], ids=["at the warm-up", "at the capture"])
def test_a_mode_is_left_when_a_whole_program_raises(bad: int, grad: bool) -> None:
    def f(x: Tensor, i: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(not grad):
            return torch.nn.functional.embedding(i, x @ x)

    g = torch.compile(f, backend="graphmode")
    x = torch.ones(3, 3, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        for i in range(4):
            if i == bad:
                with pytest.raises(IndexError):
                    g(x, torch.tensor(7))
            else:
                assert_same(g(x, torch.tensor(1)), f(x, torch.tensor(1)))
            assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() == grad
            assert torch.autocast_increment_nesting() == 1 and torch.autocast_decrement_nesting() == 0


def test_a_number_read_before_its_tensor_is_written() -> None:
    def f(x: Tensor, t: Tensor) -> Tensor:
        n = t.item()
        t.add_(1)
        return x * n

    g = torch.compile(f, backend="graphmode")
    mine, theirs = (torch.tensor(2.0, dtype=torch.double) for _ in range(2))
    for _ in range(5):
        x = torch.randn(3)
        assert_same(g(x, mine), f(x, theirs))


def test_running_statistics_of_an_unused_instance_norm() -> None:
    net, beside = (torch.nn.InstanceNorm1d(3, track_running_stats=True) for _ in range(2))
    g = torch.compile(lambda x: (net(x), x + 1)[1], backend="graphmode")
    for _ in range(5):
        x = torch.randn(2, 3, 8)
        g(x), beside(x)
        assert_same(net.running_mean, beside.running_mean)


@both_ways()
def test_one_result_given_twice_is_one_object(way: Way) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + 1
        return y, y.add_(1)

    g = way(f)
    for _ in range(5):
        a, b = g(torch.ones(2))
        assert a is b


@both_ways()
@pytest.mark.parametrize("f", [lambda x: torch.stack([x]), lambda x: x.repeat(2, 1), lambda x: x.tile((2, 2))])
def test_results_can_be_written_with_gradients_on_as_eager_s_can(way: Way, f: object) -> None:
    g, w = way(f), torch.ones(1, requires_grad=True)  # type: ignore[arg-type]
    for _ in range(5):
        result = g(torch.randn(2, 2))
        with torch.enable_grad():
            result.mul_(w).sum().backward()
