"""The two ways to compile, and how a compiled function is compared with eager.

Owns what "equal" means here: sizes, strides, dtypes, bits, effects on the arguments, the generator's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

import graphmode
from graphmode.inspect.counters import ledger
from graphmode.inspect.report import Report

Function = Callable[..., Any]
Way = Callable[..., Any]  # (function, **options) -> compiled function


def by_torch_compile(f: Function, **options: Any) -> Any:
    """The backend of torch.compile, poisoned unless the test says otherwise."""
    return torch.compile(f, backend="graphmode", options={"poison": True, **options})


def by_graphmode_compile(f: Function, **options: Any) -> Any:
    """graphmode.compile, poisoned unless the test says otherwise."""
    return graphmode.compile(f, **{"poison": True, **options})


_WAYS: dict[str, Way] = {"torch": by_torch_compile, "graphmode": by_graphmode_compile}


def both_ways() -> pytest.MarkDecorator:
    """Runs a test with `way` by torch.compile and by graphmode.compile."""
    return pytest.mark.parametrize("way", list(_WAYS.values()), ids=list(_WAYS))


def assert_same(got: Any, want: Any, where: str = "result") -> None:
    """Equal in type, size, stride, dtype and bits."""
    if isinstance(want, Tensor):
        assert isinstance(got, Tensor), f"{where} differs: {type(got).__name__} for a tensor"
        assert got.dtype == want.dtype, f"{where} differs: {got.dtype}, not {want.dtype}"
        assert got.shape == want.shape, f"{where} differs: {tuple(got.shape)}, not {tuple(want.shape)}"
        assert want.numel() < 2 or got.stride() == want.stride(), f"{where} differs: {got.stride()}, {want.stride()}"
        a, b = (t.detach().resolve_conj().resolve_neg().contiguous().view(-1) for t in (got, want))
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), f"{where} differs: other bits"
    elif isinstance(want, (tuple, list)):
        assert type(got) is type(want) and len(got) == len(want), f"{where} differs: {got!r}, not {want!r}"
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(want, dict):
        assert list(got) == list(want), f"{where} differs: {list(got)}, not {list(want)}"
        for key in want:
            assert_same(got[key], want[key], f"{where}[{key!r}]")
    else:
        assert type(got) is type(want) and got == want, f"{where} differs: {got!r}, not {want!r}"


def copies(args: Sequence[Any]) -> list[Any]:
    """Tensors of the same sizes, strides and bits over memory of their own."""
    return [_copy(a).requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]


def _copy(t: Tensor) -> Tensor:
    if t.is_conj() or t.is_neg():
        return t.detach().clone()
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t.detach())


def rng_state() -> Tensor:
    """The state of the generator that the tests' device draws from."""
    device = torch.get_default_device()
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_rng_state(state: Tensor) -> None:
    """Puts back what `rng_state` gave."""
    device = torch.get_default_device()
    (torch if device.type == "cpu" else torch.get_device_module(device)).set_rng_state(state)


def beside_eager(way: Way, f: Function, batches: Iterable[Sequence[Any]], **options: Any) -> Any:
    """Calls compiled and eager on equal arguments, one batch after the other; returns the compiled function.

    Results, arguments afterwards and the generator must be equal each time.
    """
    g = way(f, **options)
    for i, args in enumerate(batches):
        mine = copies(args)
        before = rng_state()
        want = f(*args)
        after = rng_state()
        set_rng_state(before)
        assert_same(g(*mine), want, f"result of call {i}")
        assert_same(mine, list(args), f"arguments after call {i}")
        assert torch.equal(rng_state(), after), f"generator differs after call {i}"
    return g


@dataclass
class Since:
    """What was counted since the block began."""

    captures: int = 0
    replays: int = 0
    breaks: int = 0
    live_calls: int = 0
    evictions: int = 0
    graphs: int = 0


@contextmanager
def counted() -> Iterator[Since]:
    """Differences of the counters over a block, filled when it ends."""
    kept = list(ledger.regions())  # a region that dies inside the block would change the sum
    before, since = graphmode.report(), Since()
    yield since
    del kept
    now = graphmode.report()
    for field in fields(since):
        setattr(since, field.name, getattr(now, field.name) - getattr(before, field.name))


@contextmanager
def replayed(at_least: int = 1) -> Iterator[Since]:
    """The block must replay graphs."""
    with counted() as since:
        yield since
    assert since.replays >= at_least, f"no replay: {since}"


def reasons(report: Report | None = None) -> list[str]:
    """Why calls ran outside graphs, so far."""
    return [f.reason for f in (report or graphmode.report()).fallbacks]
