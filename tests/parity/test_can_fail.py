"""Shows that the sweep fails for products that cheat, and passes for an honest one.

Owns one test per way of being wrong; each runs on stand-ins, never on graphmode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from . import check
from .drivers import BackendDriver, CompileDriver, RawDriver
from .families import large_cases
from .product import Backend
from .samples import Case, cases
from .session import Driver
from .stand_ins import (
    Count,
    DoesNothing,
    Forgets,
    Reason,
    Recorder,
    RepeatsItself,
    backend_of,
    detached,
    eager_again,
    graphs_of,
)
from .sweep import OPS

Forward = Callable[..., Any]


def _case(op: str, tag: str = "fp32", label: str = "sample0") -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(c for c in (*cases(OPS[op], tag), *large_cases(OPS[op], tag)) if c.label == label)


def _kind(case: Case, driver: Driver, **options: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check.run_case(case, driver, **options).kind


def _replaying(wrong: Callable[[Forward, int, tuple[Tensor, ...]], Any]) -> Backend:
    """Says that it replays from its third call on, where `wrong(forward, call, inputs)` gives the result."""

    def wrap(forward: Forward, count: Count) -> Forward:
        calls = 0

        def run(*inputs: Tensor) -> Any:
            nonlocal calls
            calls += 1
            if calls <= 2:
                return forward(*inputs)
            count.replays += 1
            return wrong(forward, calls, inputs)

        return run

    return backend_of(wrap)


def _forward_only() -> Backend:
    return backend_of(lambda forward, count: forward)


def _stale() -> Backend:
    def wrap(forward: Forward, count: Count) -> Forward:
        first: list[Any] = []

        def run(*inputs: Tensor) -> Any:
            if first:
                count.replays += 1
            else:
                first.append(forward(*inputs))
            return detached(first[0])

        return run

    return backend_of(wrap)


def _one_buffer() -> Backend:
    def wrap(forward: Forward, count: Count) -> Forward:
        held: list[Tensor] = []

        def run(*inputs: Tensor) -> Any:
            count.replays += 1
            new = forward(*inputs)
            held[:] = held or detached(new)
            for to, origin in zip(held, new, strict=True):
                to.copy_(origin)
            return held

        return run

    return backend_of(wrap)


def _raises(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    raise ValueError("not in eager")


def _on_copies(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    return forward(*[x.clone() for x in inputs])


def _unwritten(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    return tree_map(lambda t: torch.full_like(t, 7.5), forward(*inputs))


def _other_bit(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    return [torch.nextafter(t, t + 1) for t in forward(*inputs)]


def _without_drawing(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    with torch.random.fork_rng(devices=[]):
        return forward(*inputs)


def _seeded_alike(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    torch.default_generator.manual_seed(0)
    return forward(*inputs)


def _other_strides(forward: Forward, call: int, inputs: tuple[Tensor, ...]) -> Any:
    return [t.t().contiguous().t() for t in forward(*inputs)]


HONEST: list[tuple[str, str]] = [
    ("add", "sample0"),
    ("add", "inplace"),
    ("add", "large2"),
    ("nn.functional.batch_norm", "sample0"),
    ("nn.functional.dropout", "large1"),
    ("svd", "sample7"),
    ("t", "sample1"),
    ("as_strided.partial_views", "sample0"),
    ("zeros", "sample1"),
]


@pytest.mark.parametrize(("op", "label"), HONEST)
def test_an_honest_backend_passes(op: str, label: str) -> None:
    assert _kind(_case(op, label=label), BackendDriver(eager_again())) == check.REPLAYED


@pytest.mark.parametrize(("op", "label"), HONEST)
def test_an_honest_raw_graph_passes(op: str, label: str) -> None:
    assert _kind(_case(op, label=label), RawDriver(graphs_of(Recorder))) == check.REPLAYED


@pytest.mark.parametrize("driver", [BackendDriver, CompileDriver])
def test_the_graph_s_own_forward_fails(driver: Callable[[Backend], Driver]) -> None:
    assert _kind(_case("add"), driver(_forward_only())) == check.SILENT


@pytest.mark.parametrize("driver", [BackendDriver, CompileDriver])
@pytest.mark.parametrize("op", ["add", "sum", "softmax", "nn.functional.dropout", "cumsum"])
def test_old_values_fail(driver: Callable[[Backend], Driver], op: str) -> None:
    assert _kind(_case(op, label="large1"), driver(_stale())) == "values"


@pytest.mark.parametrize("label", ["sample0", "strided", "large1", "large2"])
def test_a_replay_that_does_nothing_fails(label: str) -> None:
    case = _case("add", label=label)
    assert _kind(case, RawDriver(graphs_of(DoesNothing))) == "values"
    assert _kind(case, BackendDriver(_replaying(_unwritten))) == "values"


def test_a_raw_graph_that_repeats_itself_fails() -> None:
    assert _kind(_case("add"), RawDriver(graphs_of(RepeatsItself))) == "values"


def test_a_raw_graph_that_bakes_a_number_in_fails() -> None:
    assert _kind(_case("item"), RawDriver(graphs_of(Recorder))) == check.REFUSED
    assert _kind(_case("item"), RawDriver(graphs_of(Forgets))) == "values"


WRONG: list[tuple[Callable[..., Any], str, str, str]] = [
    (_raises, "add", "sample0", check.RAISED),
    (_other_bit, "add", "sample0", "values"),
    (_on_copies, "add", "inplace", "mutation"),
    (_on_copies, "nn.functional.batch_norm", "sample0", "mutation"),
    (_on_copies, "t", "sample1", "alias"),
    (_other_strides, "add", "large1", "strides"),
    (_without_drawing, "nn.functional.dropout", "large1", "rng"),
    (_seeded_alike, "nn.functional.dropout", "large1", "values"),
]


@pytest.mark.parametrize(("wrong", "op", "label", "kind"), WRONG)
def test_a_wrong_replay_fails(wrong: Callable[..., Any], op: str, label: str, kind: str) -> None:
    assert _kind(_case(op, label=label), BackendDriver(_replaying(wrong))) == kind


def test_an_output_overwritten_by_a_later_call_fails() -> None:
    assert _kind(_case("add"), BackendDriver(_one_buffer())) in (check.CHANGED_LATER, "alias")


def test_a_counted_reason_is_an_answer_but_not_for_every_family() -> None:
    def wrap(forward: Forward, count: Count) -> Forward:
        def run(*inputs: Tensor) -> Any:
            count.fallbacks.append(Reason("too hard"))
            return forward(*inputs)

        return run

    assert _kind(_case("add"), BackendDriver(backend_of(wrap))) == check.COUNTED
    assert _kind(_case("add"), BackendDriver(backend_of(wrap)), must_replay=True) == check.NOT_REPLAYED


def test_uninitialised_values_fail_unless_listed() -> None:
    case = _case("empty_like", label="sample1")
    assert _kind(case, BackendDriver(eager_again())) == "values"
    assert _kind(case, BackendDriver(eager_again()), listed=True) == check.LISTED
