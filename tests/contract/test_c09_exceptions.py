"""C9: an exception during warm-up, capture or replay keeps its type and leaves everything usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import graphmode

from .ops import OwnError, Switches
from .ways import Way, assert_same, both_ways, counted, replayed

ops = torch.ops.gm_contract
WARM_UP, CAPTURE, REPLAY = 0, 1, 4


@pytest.fixture(autouse=True)
def no_switch_left_on() -> Iterator[None]:
    yield
    Switches.raising = False


def lookup(x: Tensor, i: Tensor) -> Tensor:
    return torch.exp(x).index_select(0, i) * 2


def embed(x: Tensor, i: Tensor) -> Tensor:
    return torch.nn.functional.embedding(i, x[:, None] + 1) * 2


def gather(x: Tensor, i: Tensor) -> Tensor:
    return (x + 1).gather(0, i) * 2


def put(x: Tensor, i: Tensor) -> Tensor:
    return (x + 1).index_put((i,), torch.zeros(())) * 2


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@both_ways()
@pytest.mark.parametrize("f", [lookup, embed, put])
@pytest.mark.parametrize("call", [WARM_UP, CAPTURE, REPLAY])
def test_c9_an_index_out_of_range_is_an_index_error(way: Way, f: Callable[..., Tensor], call: int) -> None:
    g, x = way(f), torch.randn(4)
    good, bad = torch.tensor([1, 2]), torch.tensor([1, 9])
    with pytest.raises(IndexError):
        f(x, bad)
    with replayed(2):
        for i in range(8):
            if i == call:
                with pytest.raises(IndexError):
                    g(x, bad)
            assert_same(g(x, good), f(x, good))


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@both_ways()
@pytest.mark.parametrize("call", [WARM_UP, CAPTURE, REPLAY])
def test_c9_gather_out_of_range_is_eager_s_error(way: Way, call: int) -> None:
    g, x = way(gather), torch.randn(4)
    good, bad = torch.tensor([1, 2]), torch.tensor([1, 9])
    with pytest.raises(RuntimeError) as eager:
        gather(x, bad)
    for i in range(8):
        if i == call:
            with pytest.raises(type(eager.value), match="out of bounds"):
                g(x, bad)
        assert_same(g(x, good), gather(x, good))


@both_ways()
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("call", [WARM_UP, CAPTURE, REPLAY])
def test_c9_a_custom_op_s_own_exception_keeps_its_class(way: Way, first: bool, call: int) -> None:
    def f(x: Tensor) -> Tensor:
        y = ops.may_raise(x if first else torch.exp(x))
        return torch.exp(y) if first else y

    g = way(f)
    for i in range(8):
        x = torch.randn(3)
        if i == call:
            Switches.raising = True
            with pytest.raises(OwnError, match="on demand"):
                g(x)
            Switches.raising = False
        assert_same(g(x), f(x))


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@both_ways()
def test_c9_what_was_written_before_the_exception_stays_written_once(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        x.add_(1)
        y = ops.may_raise(x)
        x.add_(10)
        return y

    g, x = way(f), torch.zeros(2)
    for i in range(8):
        Switches.raising = i in (0, 2, 5)
        before = x.clone()
        if Switches.raising:
            with pytest.raises(OwnError):
                g(x)
        else:
            g(x)
        assert_same(x, before + (1 if Switches.raising else 11))


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@both_ways()
def test_c9_no_memory_is_kept_by_a_failed_replay(way: Way) -> None:
    g = way(lambda x: ops.may_raise(torch.exp(x)) * 2 + 1)
    x = torch.randn(100)
    for _ in range(4):
        g(x)
    held = graphmode.report().bytes.total
    for _ in range(10):
        Switches.raising = True
        with pytest.raises(OwnError):
            g(x)
        Switches.raising = False
        assert_same(g(x), (torch.exp(x) + 1) * 2 + 1)
    assert graphmode.report().bytes.total == held
    with counted() as since:
        g(x)
    assert since.replays == 1


def test_c9_wrong_shapes_reach_the_caller_and_nothing_is_lost() -> None:
    g = torch.compile(lambda x, y: x @ y, backend="graphmode")
    x, y = torch.randn(3, 4), torch.randn(4, 5)
    for i in range(6):
        if i in (1, 4):
            with pytest.raises(RuntimeError):
                g(x, torch.randn(5, 4))
        assert_same(g(x, y), x @ y)


@both_ways()
def test_c9_an_inference_tensor_written_outside_inference_mode_raises_as_in_eager(way: Way) -> None:
    g = way(lambda x: x.add_(1))
    with torch.inference_mode(), replayed(2):
        x, eager = torch.zeros(3), torch.full((3,), 4.0)
        for _ in range(4):
            g(x)
    for _ in range(4):
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
            g(x)
        with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
            eager.add_(1)
        assert_same(x.clone(), eager.clone())


@both_ways()
def test_c9_a_first_call_with_wrong_shapes_raises_eager_s_error_and_the_next_ones_are_replayed(way: Way) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x @ y)

    g = way(f)
    with pytest.raises(RuntimeError) as eager:
        f(torch.ones(2, 3), torch.ones(4, 5))
    for _ in range(2):
        with pytest.raises(RuntimeError) as ours:
            g(torch.ones(2, 3), torch.ones(4, 5))
        assert type(ours.value) is type(eager.value) and str(ours.value) == str(eager.value)
    with replayed(2):
        for i in range(4):
            x = torch.full((2, 3), float(i))
            assert_same(g(x, torch.ones(3, 5)), f(x, torch.ones(3, 5)))
    assert not torch._dynamo.config.suppress_errors


def test_c9_a_call_inside_an_except_block_is_captured_as_any_other() -> None:
    g = torch.compile(lambda x: torch.exp(x) + 1, backend="graphmode")
    with replayed(3):
        for _ in range(5):
            try:
                raise KeyError
            except KeyError:
                g(torch.ones(3))
