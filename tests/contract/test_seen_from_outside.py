"""What a caller sees beside values: tangents, identities and attributes of results, modes that look on, devices."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import graphmode
from graphmode.errors import CaptureError

from .ways import Way, assert_same, both_ways, counted, reasons, replayed


@both_ways()
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_ad_gives_tangents_at_every_call(way: Way, grad: bool) -> None:
    f = lambda x: x.sin() * 2  # noqa: E731
    g = way(f)
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            assert_same(g(x := torch.randn(3)), f(x))
        for _ in range(4):
            with fwd.dual_level():
                dual = fwd.make_dual(torch.randn(3), torch.randn(3))
                want, got = fwd.unpack_dual(f(dual)), fwd.unpack_dual(g(dual))
                assert_same(got.primal, want.primal)
                assert got.tangent is not None and torch.equal(got.tangent, want.tangent)
        with replayed(1):
            assert_same(g(x := torch.randn(3)), f(x))
    assert any("tangent" in r for r in reasons())


class Looks(TorchDispatchMode):
    """Counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("warm", [0, 1, 4])
@pytest.mark.parametrize("mode", [Looks, lambda: FlopCounterMode(display=False)], ids=["looks", "flops"])
def test_a_dispatch_mode_sees_the_call_and_later_calls_are_replayed(warm: int, mode: Callable[[], Any]) -> None:
    net = nn.Linear(4, 4).eval()
    g = graphmode.compile(net)
    with torch.no_grad():
        for _ in range(warm):
            g(torch.randn(2, 4))
        with mode() as looks:
            for _ in range(3):
                x = torch.randn(2, 4)
                assert_same(g(x), net(x))
        assert getattr(looks, "seen", 1) > 0 and any("dispatch mode" in r for r in reasons())
        for _ in range(4):
            x = torch.randn(2, 4)
            assert_same(g(x), net(x))
        with replayed(1):
            assert_same(g(x), net(x))


@both_ways()
def test_switched_off_dynamo_is_eager_counted_and_not_for_good(way: Way) -> None:
    g = way(torch.sin)
    x = torch.randn(3)
    with torch._dynamo.config.patch(disable=True):
        for _ in range(2):
            assert_same(g(x), torch.sin(x))
    if way.__name__ == "by_graphmode_compile":
        assert any("switched off" in r for r in reasons())
        for _ in range(3):
            g(x)
        with replayed(1):
            assert_same(g(x), torch.sin(x))


class Pair(NamedTuple):
    first: Any
    second: Any


class Owner(nn.Module):
    """Gives things away that have an identity."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.stats = [1, 2]

    def forward(self, x: Tensor) -> Any:
        y = x + 1
        if self.what == "its own list":
            return self.stats, y
        if self.what == "its own list in a named tuple":
            return {"pair": Pair(y, self.stats)}
        if self.what == "a list twice":
            twice = [y]
            return twice, twice
        if self.what == "a result with an attribute":
            y.tag = 3
            return y
        if self.what == "itself":
            d: dict[str, Any] = {"y": y}
            d["self"] = d
            return d
        if self.what == "an array":
            return y, (x * 2).numpy()
        return [y, [y * 2]], {"k": [y * 3]}


@both_ways()
@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("its own list", lambda net, out: out[0] is net.stats),
        ("its own list in a named tuple", lambda net, out: out["pair"].second is net.stats),
        ("a list twice", lambda net, out: out[0] is out[1]),
        ("a result with an attribute", lambda net, out: out.tag == 3),
        ("itself", lambda net, out: out["self"] is out),
        ("an array", lambda net, out: out[1].tolist() == [2.0, 2.0, 2.0]),
    ],
)
def test_identities_and_attributes_of_results_are_eager_s(
    way: Way, what: str, kept: Callable[[Owner, Any], bool]
) -> None:
    net = Owner(what)
    g = way(net)
    with torch.no_grad():
        for _ in range(6):
            assert kept(net, g(torch.ones(3)))


def test_fresh_lists_and_dicts_skip_dynamo() -> None:
    net = Owner("fresh ones")
    g = graphmode.compile(net)
    with torch.no_grad(), replayed(3):
        for _ in range(5):
            x = torch.randn(3)
            assert_same(g(x), net(x))
    assert not reasons()


@both_ways()
def test_inputs_on_a_device_without_an_adapter_run_live_with_a_reason(way: Way) -> None:
    g = way(lambda x: x * 2)
    for _ in range(3):
        assert g(torch.zeros(2, device="meta")).device.type == "meta"
    x = torch.randn(2)
    for _ in range(3):
        assert_same(g(x), x * 2)
    assert any("meta" in r for r in reasons())


def test_weights_may_be_swapped_with_others() -> None:
    net = nn.Linear(3, 3)
    g = torch.compile(net, backend="graphmode")
    x = torch.randn(2, 3)
    with torch.no_grad():
        for _ in range(4):
            g(x)
        torch.utils.swap_tensors(net.weight, nn.Parameter(torch.randn(3, 3)))
        for _ in range(4):
            assert_same(g(x), net(x))


@both_ways()
@pytest.mark.parametrize("at", [0, 1, 5])
def test_one_call_without_an_op_does_not_leave_a_function_to_python(way: Way, at: int) -> None:
    def f(x: Tensor, m: Tensor | None = None) -> Tensor:
        return x if m is None else x + m

    g = way(f)
    with replayed(15):
        for i in range(20):
            x, m = torch.randn(3), torch.randn(3)
            assert_same(g(x) if i == at else g(x, m), x if i == at else x + m)
    if way.__name__ == "by_torch_compile":
        assert any("no op to capture" in r for r in reasons())


def jagged(a: Tensor, b: Tensor) -> Tensor:
    return (torch.nested.nested_tensor([a, b], layout=torch.jagged) * 2).values()


@both_ways()
def test_nested_tensors_made_inside_run(way: Way) -> None:
    g = way(jagged)
    with torch.no_grad():
        for _ in range(5):
            a, b = torch.randn(2, 3), torch.randn(1, 3)
            assert_same(g(a, b), jagged(a, b))


@pytest.mark.parametrize(
    "block",
    [
        lambda x: torch.tensor([x[0], x[1]]),
        lambda x: torch.as_tensor([x[0], 2.0]),
        lambda x: x.new_tensor([[x[0]], [2.0]]),
        lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
    ],
    ids=["tensor", "as_tensor", "new_tensor", "cond"],
)
@pytest.mark.cpu("it captures on the CPU's graph by name")
def test_a_raw_graph_refuses_what_it_would_freeze(block: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([1.0, 2.0])
    with pytest.raises(CaptureError), graphmode.Graph():
        block(x) * 2
    with graphmode.Graph() as graph:
        y = x * 2
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [6.0, 6.0]


def test_first_calls_on_many_threads_at_once_are_all_learned() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    wanted: list[bool] = []
    for _ in range(3):
        torch._dynamo.reset()
        graphmode.reset()
        g, start = graphmode.compile(net), threading.Barrier(3)

        def calls(g: Any = g, start: threading.Barrier = start) -> None:
            torch.set_default_device(os.environ.get("GRAPHMODE_TEST_DEVICE"))  # each thread has its own
            start.wait()
            with torch.no_grad():
                for _ in range(6):
                    x = torch.randn(2, 4)
                    wanted.append(torch.equal(g(x), net(x)))

        threads = [threading.Thread(target=calls) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not reasons()
        with torch.no_grad(), counted() as since:
            g(torch.randn(2, 4))
        assert since.replays == 1
    assert all(wanted)
