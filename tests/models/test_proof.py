"""The suite can fail: each way in which a backend could cheat or err gives a row that is not identical."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from proof.row import Row, Verdict
from proof.snapshot import same_bits
from proof.table import page
from proof.trial import trial
from torch import Tensor, nn, tensor
from zoo import CASES
from zoo.fields import fixed, normal
from zoo.nets.net import net

Graph = torch.fx.GraphModule
MLP = CASES["mlp"]


@dataclass
class Counters:
    """What `graphmode.report()` gives, as far as the sweep reads it."""

    replays: int = 0
    graphs: int = 1
    captures: int = 1
    breaks: int = 0
    live_calls: int = 0
    fallbacks: list[Any] = field(default_factory=list)


def forward(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
    return graph.forward


def reason(count: int) -> SimpleNamespace:
    return SimpleNamespace(reason="Tensor.item", op="aten::item", line="y = x.item()", count=count)


def test_graphs_own_forward_is_not_enough() -> None:
    assert trial(MLP, forward, Counters).verdict is Verdict.UNREPLAYED


def test_a_replay_is_enough() -> None:
    row = trial(MLP, forward, lambda: Counters(replays=3))
    assert row.identical and row.replays == 3


@pytest.mark.parametrize(("count", "verdict"), [(2, Verdict.IDENTICAL), (0, Verdict.UNREPLAYED)])
def test_a_reason_must_be_counted(count: int, verdict: Verdict) -> None:
    assert trial(MLP, forward, lambda: Counters(fallbacks=[reason(count)])).verdict is verdict


def test_stale_outputs_differ() -> None:
    def stale(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        first: list[Any] = []

        def call(*args: Any) -> Any:
            first.append(first[0] if first else graph(*args))
            return first[0]

        return call

    row = trial(MLP, stale, lambda: Counters(replays=3))
    assert row.verdict is Verdict.DIFFERS
    assert row.detail.startswith("call 1: outputs: values differ")


def test_outputs_overwritten_by_a_later_replay_differ() -> None:
    def static(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        held: list[Tensor] = []

        def call(*args: Any) -> Any:
            (y,) = graph(*args)
            held.append(held[0].copy_(y) if held else y.clone())
            return (held[0],)

        return call

    row = trial(MLP, static, lambda: Counters(replays=3))
    assert row.verdict is Verdict.DIFFERS
    assert row.detail.startswith("outputs held until the last call")


@pytest.mark.parametrize("name", ["moving-average", "kv-cache", "input-writer", "python-state"])
def test_lost_mutation_differs(name: str) -> None:
    def without_mutation(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        return lambda *args: graph(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args))

    row = trial(CASES[name], without_mutation, lambda: Counters(replays=3))
    assert row.verdict is (Verdict.IDENTICAL if name == "python-state" else Verdict.DIFFERS)


def test_numbers_drawn_once_differ() -> None:
    def frozen_random(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return graph(*args)

        return call

    row = trial(CASES["dropout-train"], frozen_random, lambda: Counters(replays=3))
    assert row.verdict is Verdict.DIFFERS


def test_copied_view_differs() -> None:
    def copying(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        return lambda *args: tuple(y.clone(memory_format=torch.preserve_format) for y in graph(*args))

    row = trial(CASES["ring-buffer"], copying, lambda: Counters(replays=3))
    assert row.verdict is Verdict.DIFFERS
    assert "shares memory" in row.detail


def test_other_strides_differ() -> None:
    def contiguous(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        return lambda *args: tuple(y.mT.contiguous().mT if y.ndim > 1 else y for y in graph(*args))

    row = trial(CASES["boolean-mask"], contiguous, lambda: Counters(replays=3))
    assert row.verdict is Verdict.DIFFERS
    assert "stride" in row.detail


def test_equal_inputs_prove_nothing() -> None:
    case = net("unchanging", lambda: nn.Linear(2, 2), fixed(torch.ones(1, 2)))
    assert trial(case, forward, lambda: Counters(replays=3)).verdict is Verdict.UNCHANGED


def test_an_exception_keeps_its_type() -> None:
    def broken(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            raise ZeroDivisionError("in the replay")

        return call

    row = trial(MLP, broken)
    assert row.verdict is Verdict.FAILED
    assert row.detail == "ZeroDivisionError: in the replay"


class Asking(nn.Module):
    """Computes something else when it is compiled, as some models do."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 3 if torch.compiler.is_compiling() else x + x + x + 0.1 - 0.1


def test_branch_taken_when_compiled_is_told_apart() -> None:
    row = trial(net("asking", Asking, normal(64)), "eager")
    assert row.verdict is Verdict.BRANCH
    assert row.identical


def test_branch_is_no_excuse() -> None:
    def wrong(graph: Graph, inputs: list[Tensor]) -> Callable[..., Any]:
        return lambda *args: tuple(y.nextafter(y + 1) for y in graph(*args))

    assert trial(net("asking", Asking, normal(64)), wrong).verdict is Verdict.DIFFERS


class Unsteady(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Unsteady.calls += 1
        return x + Unsteady.calls


def test_eager_that_differs_from_eager_is_said() -> None:
    assert trial(net("unsteady", Unsteady, normal(2)), forward).verdict is Verdict.IRREPRODUCIBLE


def test_same_bits() -> None:
    nan, other_nan = tensor(float("nan")), tensor(float("nan")).neg()
    assert same_bits(nan, other_nan)
    assert not same_bits(tensor(0.0), tensor(-0.0))
    assert not same_bits(nan, tensor(1.0))
    assert not same_bits(tensor([1.0, 2.0]), tensor([1.0, 2.0000002]))
    assert same_bits(tensor([1 + 2j]).conj(), tensor([1 - 2j]))
    assert same_bits(torch.zeros(0, 3), torch.zeros(0, 3))


def test_the_table_says_why() -> None:
    failed = Row("a", "net", verdict=Verdict.DIFFERS, detail="call 1: outputs: values differ")
    broken = Row("b", "net", verdict=Verdict.IDENTICAL, breaks=2, reasons=[vars(reason(2))])
    branched = Row("c", "net", verdict=Verdict.BRANCH, detail="branches")
    text = page([failed, broken, branched], "graphmode")
    assert "2 of 3 cases identical" in text
    assert "1 of these models ask" in text
    assert "| c | net | yes, as compiled |" in text
    assert "**no**: differs" in text
    assert "Tensor.item (`aten::item`) at `y = x.item()`, 2x" in text
