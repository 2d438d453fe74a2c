"""Devices whose graphs keep their addresses: inputs are copied in, caches and weights read in place, results kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphmode
from graphmode.devices import adapter
from graphmode.runtime.region import Region

from .pinned_device import PinnedDevice
from .ways import assert_same, counted, reasons

pytestmark = pytest.mark.cpu("it captures on the CPU's graph by name")


@pytest.fixture(autouse=True)
def pinned() -> Iterator[None]:
    adapter._found["pinned"] = PinnedDevice()
    with torch.no_grad():
        yield
    del adapter._found["pinned"]


def compiled(f: Any, **options: Any) -> Any:
    return torch.compile(f, backend="graphmode", options={"device": "pinned", **options})


def test_values_are_copied_in_and_results_are_the_caller_s() -> None:
    f = lambda x, y: (torch.exp(x) * y, x[1:] + 1)  # noqa: E731
    g, held, want = compiled(f), [], []
    with counted() as since:
        for _ in range(8):
            x, y = torch.randn(4, 3), torch.randn(4, 3)
            held.append(g(x, y))
            want.append(f(x, y))
    assert_same(held, want)
    assert since.replays == 6


def test_what_lies_still_is_read_and_written_in_place() -> None:
    cache = torch.zeros(64, 8)

    def step(cache: Tensor, x: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, at, x)
        return cache.sum(0)

    g, beside = compiled(step), cache.clone()
    home = cache.data_ptr()
    with counted() as since:
        for i in range(8):
            x, at = torch.randn(1, 8), torch.tensor([i])
            assert_same(g(cache, x, at), step(beside, x, at))
            assert_same(cache, beside)
    assert since.replays == 6 and since.evictions == 0 and cache.data_ptr() == home


def test_inputs_written_elsewhere_at_each_call_are_given_back() -> None:
    def f(x: Tensor) -> Tensor:
        x.mul_(2)
        return x[0] + 1

    g, kept = compiled(f), []
    for _ in range(6):
        x = torch.randn(3, 3)
        kept.append(x)
        mine, theirs = x.clone(), x.clone()
        version = mine._version
        assert_same(g(mine), f(theirs))
        assert_same(mine, theirs)
        assert mine._version > version


def test_a_weight_that_moved_is_captured_anew() -> None:
    net = nn.Linear(4, 4)
    g, x = compiled(net), torch.randn(2, 4)
    with counted() as since:
        for i in range(9):
            if i == 4:
                net.weight.data = torch.randn(4, 4)
            if i == 6:
                net.weight.mul_(2)
            assert_same(g(x), net(x))
    assert since.captures == 2 and since.replays >= 6


def test_inputs_that_share_memory_go_on_sharing_it() -> None:
    def f(whole: Tensor, row: Tensor) -> Tensor:
        row.add_(1)
        return whole * 2

    g = compiled(f)
    for _ in range(6):
        mine, theirs = torch.ones(3, 4), torch.ones(3, 4)
        keep = torch.empty(7)  # so that memory is not at the same address each time
        assert_same(g(mine, mine[1]), f(theirs, theirs[1]))
        assert_same(mine, theirs)
        del keep


def test_views_that_begin_elsewhere_in_their_storage_at_each_call() -> None:
    """The signature has no offset: one graph serves every row."""
    g, mine, theirs = compiled(lambda row: row.add_(1)), torch.zeros(5, 4), torch.zeros(5, 4)
    with counted() as since:
        for i in range(12):
            row = (3 * i) % 5
            assert_same(g(mine[row]), theirs[row].add_(1))
            assert_same(mine, theirs)
    assert since.replays >= 8


def test_results_keep_their_dtype_and_lazy_bits() -> None:
    f = lambda z: ((z * 2).conj(), torch.view_as_real(z), z.conj().imag, torch.view_as_real(z * 3))  # noqa: E731
    g, home = compiled(f), torch.randn(4, dtype=torch.complex64)
    for i in range(6):
        z = home if i % 2 else torch.randn(4, dtype=torch.complex64)
        got, want = g(z), f(z)
        assert [(t.is_conj(), t.is_neg(), t.dtype) for t in got] == [(t.is_conj(), t.is_neg(), t.dtype) for t in want]
        assert_same(got, want)


def test_inputs_of_several_dtypes_in_one_storage() -> None:
    """Distances count in bytes: the same numbers of elements apart may be other bytes apart."""
    f = lambda a, b: a.sum() + b.sum()  # noqa: E731
    g = compiled(f)
    for begin in (0, 2, 0, 2, 4, 0, 2):
        memory = torch.randn(64)
        a, b = memory[begin : begin + 4], memory.view(torch.int16)[begin + 10 : begin + 14]
        assert_same(g(a, b), f(a, b))


def test_weights_of_two_models_take_turns_without_new_captures() -> None:
    nets = [nn.Linear(4, 4) for _ in range(3)]
    both, x = [compiled(n) for n in nets], torch.randn(2, 4)
    with counted() as since:
        for _ in range(8):
            for g, n in zip(both, nets, strict=True):
                assert_same(g(x), n(x))
    assert since.captures == 3 and since.evictions == 0 and since.replays >= 18


def test_a_graph_holds_no_weights() -> None:
    net = nn.Linear(4, 4)
    g, x, gone = compiled(net), torch.randn(2, 4), weakref.ref(net.weight)
    for _ in range(4):
        g(x)
    net.weight = nn.Parameter(torch.randn(4, 4))
    gc.collect()
    assert gone() is None
    assert_same(g(x), net(x))


@pytest.mark.parametrize("parts", [1, 2])
def test_what_lies_between_the_elements_of_a_written_input_is_not_touched(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stream may write it while the graph runs."""

    def step(*pieces: Tensor) -> Tensor:
        for piece in pieces:
            piece.add_(1)
        return pieces[0] * 2

    def split(buffer: Tensor) -> list[Tensor]:
        return [buffer[:, 2 * i : 2 * i + 2] for i in range(parts)]

    g = compiled(step)
    for _ in range(4):
        g(*split(torch.randn(3, 8)))
    buffer = torch.zeros(3, 8)
    monkeypatch.setattr(PinnedDevice, "meanwhile", staticmethod(lambda: buffer[:, 2 * parts :].fill_(7)))
    with counted() as since:
        g(*split(buffer))
    assert since.replays == 1
    assert_same(buffer, torch.cat([torch.ones(3, 2 * parts), torch.full((3, 8 - 2 * parts), 7.0)], 1))


def test_a_call_whose_graph_another_thread_dropped_meanwhile_runs_live_and_says_so() -> None:
    g = compiled(lambda x: torch.exp(x) * 2)
    for _ in range(4):
        g(torch.randn(4))
    (region,) = [o for o in gc.get_objects() if type(o) is Region and o.graphs]
    (number,) = region.graphs
    graphmode._C.runner_drop(region.run, number)  # between the look-up in the table and the replay
    x = torch.randn(4)
    assert_same(g(x), torch.exp(x) * 2)
    assert any("dropped by another thread" in reason for reason in reasons())


@pytest.mark.parametrize(
    "strided", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[0].expand(4, 4), lambda x: x[:0]]
)
def test_strides_and_gaps_are_kept(strided: Any) -> None:
    f = lambda x: (x + 1, x.view_as(x))  # noqa: E731
    g = compiled(f)
    for _ in range(5):
        x = strided(torch.randn(4, 4))
        got, want = g(x), f(x)
        assert_same(got, want)
        assert [t.stride() for t in got] == [t.stride() for t in want]


def test_the_least_recently_used_graph_goes() -> None:
    g = compiled(lambda x: x * 2, max_graphs=2)
    torch._dynamo.mark_dynamic(first := torch.randn(5), 0)
    g(first)
    with counted() as since:
        for n in (2, 3, 4, 2, 3, 4):
            for _ in range(6):
                x = torch.randn(n)
                assert_same(g(x), x * 2)
    assert since.evictions >= 3 and graphmode.report().graphs <= 2


def test_what_a_program_writes_beyond_an_input_may_be_another_input() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x.as_strided((8,), (1,)).add_(1)
        return y * 2

    g = compiled(f)
    for i in range(10):
        mine, theirs = torch.arange(8.0), torch.arange(8.0)
        other = torch.randn(8) if i % 3 else None
        y = (mine if other is None else other)[4:]
        want = (theirs if other is None else other.clone())[4:]
        assert_same(g(mine[:4], y), f(theirs[:4], want))
        assert_same(mine, theirs)


def test_a_complex_view_at_an_odd_offset_raises_as_in_eager() -> None:
    g, base = compiled(lambda x: (torch.view_as_complex(x), x + 1)), torch.arange(9.0)
    for _ in range(5):
        g(base[:8].view(4, 2))
    with pytest.raises(RuntimeError):
        g(base[1:].view(4, 2))
