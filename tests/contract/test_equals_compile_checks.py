"""What equals what: `graphmode.compile` checks natively, and what it can't check Dynamo's guards still do."""

from __future__ import annotations

import collections
import dataclasses
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .ways import Way, assert_same, both_ways, replayed

FACTOR = 2.0
Change = Callable[[], None]
Case = tuple[Callable[[Tensor], Tensor], Change]


def case_closure_cell() -> Case:
    k = 2.0

    def change() -> None:
        nonlocal k
        k = 3.0

    return lambda x: x * k, change


def case_module_global() -> Case:
    globals()["FACTOR"] = 2.0
    return lambda x: x * FACTOR, lambda: globals().__setitem__("FACTOR", 3.0)


def case_global_of_another_module() -> Case:
    module = types.ModuleType("graphmode_contract_other")
    sys.modules[module.__name__] = module
    exec("K = 2.0\ndef f(x):\n    return x * K", module.__dict__)
    return module.f, lambda: setattr(module, "K", 3.0)


class Scaled(nn.Module):
    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.own, self.table, self.items, self.flags = 2.0, {"k": 2.0}, [2.0], {"a"}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor * self.own * self.table["k"] * self.items[0] * (2 if "b" in self.flags else 1)


def case_class_attribute() -> Case:
    Scaled.factor = 2.0
    return Scaled(), lambda: setattr(Scaled, "factor", 3.0)


def _of_net(change: Callable[[Scaled], Any]) -> Case:
    net = Scaled()
    return net, lambda: change(net)


def case_attribute() -> Case:
    return _of_net(lambda n: setattr(n, "own", 3.0))


def case_dict_item() -> Case:
    return _of_net(lambda n: n.table.update(k=3.0))


def case_list_item() -> Case:
    return _of_net(lambda n: n.items.__setitem__(0, 3.0))


def case_set_member() -> Case:
    return _of_net(lambda n: n.flags.add("b"))


def case_replaced_forward() -> Case:
    return _of_net(lambda n: setattr(n, "forward", lambda x: x * 7))


class Slots:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


@dataclasses.dataclass
class Settings:
    factor: float = 2.0


def _of_object(thing: Any) -> Case:
    return lambda x: x * thing.factor, lambda: setattr(thing, "factor", 3.0)


def case_slots() -> Case:
    return _of_object(Slots())


def case_dataclass() -> Case:
    return _of_object(Settings())


def case_namespace() -> Case:
    return _of_object(types.SimpleNamespace(factor=2.0))


def case_deque() -> Case:
    queue = collections.deque([2.0])
    return lambda x: x * queue[0], lambda: queue.__setitem__(0, 3.0)


def case_ordered_dict() -> Case:
    table = collections.OrderedDict(k=2.0)
    return lambda x: x * table["k"], lambda: table.update(k=3.0)


def case_function_default() -> Case:
    def inner(x: Tensor, k: float = 2.0) -> Tensor:
        return x * k

    return lambda x: inner(x), lambda: setattr(inner, "__defaults__", (3.0,))


def case_function_code() -> Case:
    def inner(x: Tensor) -> Tensor:
        return x * 2

    def other(x: Tensor) -> Tensor:
        return x * 3

    return lambda x: inner(x), lambda: setattr(inner, "__code__", other.__code__)


def case_global_tensor() -> Case:
    globals()["WEIGHT"] = torch.ones(3)
    return lambda x: x * globals()["WEIGHT"], lambda: globals().__setitem__("WEIGHT", torch.full((3,), 3.0))


CASES = [v for n, v in list(globals().items()) if n.startswith("case_")]


@both_ways()
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__.removeprefix("case_"))
def test_compile_checks_what_the_program_read(way: Way, case: Callable[[], Case]) -> None:
    f, change = case()
    g, x = way(f), torch.arange(1.0, 4.0)
    for _ in range(4):
        assert_same(g(x), f(x))
    before = f(x)
    change()
    assert not torch.equal(f(x), before)
    for _ in range(4):
        assert_same(g(x), f(x))


@both_ways()
def test_compile_checks_an_argument_s_own_state(way: Way) -> None:
    for thing in (Slots(), Settings()):
        g = way(lambda x, t: x * t.factor)
        for i in range(8):
            thing.factor = float(i // 4)
            assert_same(g(torch.ones(3), thing), torch.ones(3) * thing.factor)


@both_ways()
def test_compile_tells_a_parameter_that_is_an_argument_from_one_that_is_not(way: Way) -> None:
    weight, other = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
    g = way(lambda x: x @ weight)
    with torch.no_grad(), replayed(2):
        for x in [weight, weight, weight, other, weight, other, other]:
            assert_same(g(x), x @ weight)


@both_ways()
def test_compile_checks_which_arguments_are_one_tensor(way: Way) -> None:
    f = lambda x, y: (x.mul_(2), y + 1)  # noqa: E731
    g = way(f)
    for i in range(12):
        x = torch.randn(3)
        y = [x, x.clone(), x[:]][i % 3]
        mine = x.clone()
        same = [mine, y.clone(), mine[:]][i % 3]
        want = f(x, y)
        assert_same(g(mine, same), want)


@both_ways()
def test_compile_gives_python_s_random_numbers_anew(way: Way) -> None:
    f = lambda x: x * random.random()  # noqa: E731
    g, x = way(f), torch.ones(3)
    random.seed(0)
    got = [g(x) for _ in range(6)]
    random.seed(0)
    assert_same(got, [f(x) for _ in range(6)])


@pytest.mark.cpu("under a default device Dynamo itself loses a float that the model writes, with any backend")
@both_ways()
def test_compile_repeats_what_the_model_does_to_python_objects(way: Way) -> None:
    log: list[int] = []
    net = Scaled()

    def f(x: Tensor) -> Tensor:
        log.append(len(log))
        net.own = net.own + 1.0
        return net(x)

    g = way(f)
    for _ in range(6):
        g(torch.ones(3))
    assert log == list(range(6)) and net.own == 8.0


@both_ways()
def test_compile_takes_arguments_by_name_by_default_and_in_containers(way: Way) -> None:
    def f(x: Tensor, *, k: float = 2.0, more: dict[str, Any] | None = None) -> dict[str, Any]:
        y = x * k + (more["y"] if more else 0)
        return {"y": y, "n": x.shape[0], "pair": (y, [x])}

    g = way(f)
    x = torch.randn(3)
    kinds: list[dict[str, Any]] = [{}, {"k": 3.0}, {"more": {"y": x}}, {"k": 2.0, "more": {"y": x, "z": 1}}]
    for kwargs in kinds * 4:
        assert_same(g(x, **kwargs), f(x, **kwargs))


@both_ways()
def test_compile_gives_an_argument_s_own_container_back(way: Way) -> None:
    g, given = way(lambda x, more: (x + 1, more)), [torch.ones(1)]
    for _ in range(5):
        assert g(torch.ones(2), given)[1] is given
