"""What equals what: state that `graphmode.compile` must not take for fixed. Each case changes one thing between calls.

`torch.compile` alone misses some of it (classes, hooks), so that only `graphmode.compile` is asked.
"""

from __future__ import annotations

import collections
import copy
import enum
import functools
import math
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphmode import _C

from .ways import assert_same, by_graphmode_compile, reasons, replayed

Change = Callable[[], Any]
Case = tuple[Callable[[Tensor], Tensor], Change]


class Net(nn.Module):
    """Made anew for each case, its class too."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 4.0]))
        self.inner = nn.ReLU()

    def scale(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.scale(x)) * self.weight * self.factor


def fresh() -> tuple[Any, type]:
    cls = type("Fresh", (Net,), {"scale": lambda self, x: x * 2, "factor": 2.0})
    return cls(), cls


def case_a_method_of_the_class() -> Case:
    net, cls = fresh()
    return net, lambda: setattr(cls, "scale", lambda self, x: x * 5)


def case_forward_of_the_class() -> Case:
    net, cls = fresh()
    return net, lambda: setattr(cls, "forward", lambda self, x: x * 5)


def case_an_attribute_of_a_base_class() -> Case:
    base = type("Base", (Net,), {"factor": 2.0})
    return type("Derived", (base,), {})(), lambda: setattr(base, "factor", 3.0)


def case_an_attribute_that_a_nearer_class_gets() -> Case:
    cls = type("Derived", (Net,), {})
    return cls(), lambda: setattr(cls, "factor", 3.0)


def case_an_instance_attribute_over_the_class_s() -> Case:
    net, _ = fresh()
    return net, lambda: setattr(net, "factor", 3.0)


def case_a_property_over_an_attribute() -> Case:
    net, cls = fresh()
    return net, lambda: setattr(cls, "factor", property(lambda self: 3.0))


def case_another_class_of_the_object() -> Case:
    net, cls = fresh()
    return net, lambda: setattr(net, "__class__", type("Other", (cls,), {"scale": lambda self, x: x * 5}))


def case_another_dict_of_the_object() -> Case:
    class Own:
        def __init__(self) -> None:
            self.factor = 2.0

    own = Own()
    return lambda x: x * own.factor, lambda: setattr(own, "__dict__", {"factor": 3.0})


def case_a_forward_hook_of_a_submodule() -> Case:
    net, _ = fresh()
    return net, lambda: net.inner.register_forward_hook(lambda m, i, out: out + 1)


def case_a_forward_pre_hook_of_the_model() -> Case:
    net, _ = fresh()
    return net, lambda: net.register_forward_pre_hook(lambda m, args: (args[0] + 1,))


def case_a_hook_that_goes() -> Case:
    net, _ = fresh()
    handle = net.inner.register_forward_hook(lambda m, i, out: out + 1)
    return net, handle.remove


def case_a_hook_of_all_modules() -> Case:
    net, _ = fresh()
    return net, lambda: nn.modules.module.register_module_forward_hook(
        lambda m, i, out: out + 1 if m is net.inner else None
    )


def case_a_property() -> Case:
    class Own:
        hidden = 2.0

        @property
        def factor(self) -> float:
            return self.hidden

    own = Own()
    return lambda x: x * own.factor, lambda: setattr(own, "hidden", 3.0)


def case_a_getattr() -> Case:
    class Own:
        def __init__(self) -> None:
            self.table = {"factor": 2.0}

        def __getattr__(self, name: str) -> float:
            return self.__dict__["table"][name]

    own = Own()
    return lambda x: x * own.factor, lambda: own.table.update(factor=3.0)


def case_a_module_s_attribute() -> Case:
    module = types.ModuleType("graphmode_contract_state")
    sys.modules[module.__name__] = module
    module.factor = 2.0
    return lambda x: x * module.factor, lambda: setattr(module, "factor", 3.0)


def case_a_function_of_a_module() -> Case:
    module = types.ModuleType("graphmode_contract_functions")
    sys.modules[module.__name__] = module
    exec("def scale(x):\n    return x * 2", module.__dict__)
    return lambda x: module.scale(x), lambda: setattr(module, "scale", lambda x: x * 3)


def case_keyword_defaults() -> Case:
    def inner(x: Tensor, *, k: float = 2.0) -> Tensor:
        return x * k

    return lambda x: inner(x), lambda: inner.__kwdefaults__.update(k=3.0)


def case_other_keyword_defaults() -> Case:
    def inner(x: Tensor, *, k: float = 2.0) -> Tensor:
        return x * k

    return lambda x: inner(x), lambda: setattr(inner, "__kwdefaults__", {"k": 3.0})


def case_a_cell_of_a_called_function() -> Case:
    k = 2.0

    def inner(x: Tensor) -> Tensor:
        return x * k

    def change() -> None:
        nonlocal k
        k = 3.0

    return lambda x: inner(x), change


def case_a_tensor_in_a_cell() -> Case:
    weight = torch.ones(3)

    def change() -> None:
        nonlocal weight
        weight = torch.full((3,), 3.0)

    return lambda x: x * weight, change


def case_a_tensor_in_a_list() -> Case:
    held = [torch.ones(3)]
    return lambda x: x * held[0], lambda: held.__setitem__(0, torch.full((3,), 3.0))


def case_a_tensor_in_a_deque() -> Case:
    held = collections.deque([torch.ones(3)])
    return lambda x: x * held[0], lambda: held.__setitem__(0, torch.full((3,), 3.0))


def case_a_tensor_in_a_slot() -> Case:
    class Own:
        __slots__ = ("weight",)

    own = Own()
    own.weight = torch.ones(3)
    return lambda x: x * own.weight, lambda: setattr(own, "weight", torch.full((3,), 3.0))


def case_a_tensor_behind_a_property() -> Case:
    table = {"weight": torch.ones(3)}

    class Own:
        @property
        def weight(self) -> Tensor:
            return table["weight"]

    own = Own()
    return lambda x: x * own.weight, lambda: table.update(weight=torch.full((3,), 3.0))


def case_an_object_in_a_tuple() -> Case:
    held = (types.SimpleNamespace(factor=2.0),)
    return lambda x: x * held[0].factor, lambda: setattr(held[0], "factor", 3.0)


def case_an_object_in_an_argument_s_default() -> Case:
    thing = types.SimpleNamespace(factor=2.0)

    def f(x: Tensor, t: Any = thing) -> Tensor:
        return x * t.factor

    return f, lambda: setattr(thing, "factor", 3.0)


def case_the_order_of_a_dict() -> Case:
    table = {"a": 2.0, "b": 3.0}
    return lambda x: x * next(iter(table.values())), lambda: table.update(a=table.pop("a"))


def case_the_order_of_an_ordered_dict() -> Case:
    table = collections.OrderedDict(a=2.0, b=3.0)
    return lambda x: x * next(iter(table.values())), lambda: table.move_to_end("a")


def case_the_order_of_submodules() -> Case:
    net = nn.Sequential(nn.ReLU(), nn.Threshold(1.5, -7.0))

    def change() -> None:
        net[0], net[1] = net[1], net[0]

    return net, change


def case_a_default_dict() -> Case:
    table: collections.defaultdict[str, float] = collections.defaultdict(lambda: 2.0)
    return lambda x: x * table["k"] if len(table) else x, lambda: table.update(k=3.0)


def case_a_partial() -> Case:
    held = [functools.partial(lambda x, k: x * k, k=2.0)]
    return lambda x: held[0](x), lambda: held.__setitem__(0, functools.partial(held[0].func, k=3.0))


def case_a_bound_method_s_object() -> Case:
    class Own:
        factor = 2.0

        def scale(self, x: Tensor) -> Tensor:
            return x * self.factor

    own = Own()
    return own.scale, lambda: setattr(own, "factor", 3.0)


def case_a_length() -> Case:
    held: list[int] = [1, 2]
    return lambda x: x * len(held), lambda: held.append(3)


def case_a_missing_attribute() -> Case:
    thing = types.SimpleNamespace()
    return lambda x: x * (3.0 if hasattr(thing, "extra") else 2.0), lambda: setattr(thing, "extra", 1)


def case_a_missing_attribute_of_a_module() -> Case:
    net, _ = fresh()
    return lambda x: net(x) * (3.0 if hasattr(net, "extra") else 2.0), lambda: net.register_buffer(
        "extra", torch.ones(1)
    )


def case_a_parameter_s_requires_grad() -> Case:
    net, _ = fresh()
    return lambda x: x * (3.0 if net.weight.requires_grad else 2.0), lambda: net.weight.requires_grad_(False)


def case_a_parameter_s_attribute() -> Case:
    net, _ = fresh()
    net.weight.scale = 2.0
    return lambda x: x * net.weight * net.weight.scale, lambda: setattr(net.weight, "scale", 3.0)


def case_a_member_of_an_enum() -> Case:
    class Kind(enum.Enum):
        A = 2.0
        B = 3.0

    thing = types.SimpleNamespace(kind=Kind.A)
    return lambda x: x * thing.kind.value, lambda: setattr(thing, "kind", Kind.B)


def case_a_weak_reference() -> Case:
    held = {"ref": torch.full((3,), 2.0), "other": torch.full((3,), 3.0)}
    thing = types.SimpleNamespace(ref=weakref.ref(held["ref"]))
    return lambda x: x * thing.ref(), lambda: setattr(thing, "ref", weakref.ref(held["other"]))


def case_a_constant_of_math() -> Case:
    return lambda x: x * math.tau, lambda: setattr(math, "tau", 3.0)


CASES = [v for n, v in list(globals().items()) if n.startswith("case_")]


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """What a case sets for the whole process."""
    tau, hooks = math.tau, nn.modules.module._global_forward_hooks
    yield
    math.tau = tau
    hooks.clear()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__.removeprefix("case_"))
def test_compile_sees_a_change_of(case: Callable[[], Case]) -> None:
    f, change = case()
    g, x = by_graphmode_compile(f), torch.arange(1.0, 4.0)
    with torch.no_grad():
        for _ in range(4):
            assert_same(g(x), f(x))
        before = f(x)
        change()
        assert not torch.equal(f(x), before)
        for _ in range(4):
            assert_same(g(x), f(x))


def test_compile_sees_an_argument_s_requires_grad() -> None:
    f = lambda x, y: y * (3.0 if x.requires_grad else 2.0)  # noqa: E731
    g, y = by_graphmode_compile(f), torch.ones(3)
    with torch.no_grad():
        for i in range(12):
            x = torch.ones(2).requires_grad_(i // 4 == 1)
            assert_same(g(x, y), f(x, y))


def test_compile_sees_an_attribute_of_an_argument() -> None:
    f = lambda x: x * x.scale  # noqa: E731
    g = by_graphmode_compile(f)
    for i in range(12):
        x = torch.ones(3)
        x.scale = float(i // 4)
        assert_same(g(x), f(x))


def test_compile_sees_the_size_of_an_argument_that_the_graph_does_not_take() -> None:
    f = lambda x, y: y * x.shape[0] + x.dim()  # noqa: E731
    g, y = by_graphmode_compile(f), torch.ones(3)
    with replayed():
        for n in (2, 2, 2, 3, 3, 4, 4, 5, 5, 2, 6, 6, 6):
            assert_same(g(torch.ones(n), y), f(torch.ones(n), y))


def test_compile_gives_sizes_of_this_call() -> None:
    f = lambda x: (x + 1, x.shape[0], {"n": x.numel() * 2})  # noqa: E731
    g = by_graphmode_compile(f)
    with replayed():
        for n in (2, 3, 4, 5, 2, 3, 4, 5, 7, 5, 3, 7, 9, 7, 9, 9):
            assert_same(g(torch.ones(n)), f(torch.ones(n)))


def test_compile_tells_arguments_of_one_kind_apart() -> None:
    Pair = collections.namedtuple("Pair", "a b")

    class Kind(enum.Enum):
        A = 2.0
        B = 3.0

    def f(x: Tensor, t: Any) -> Tensor:
        if isinstance(t, Kind):
            return x * t.value
        if isinstance(t, Pair):
            return x * t.a + t.b
        if isinstance(t, (set, frozenset)):
            return x * len(t)
        return x * sum(t)

    g, x = by_graphmode_compile(f), torch.ones(3)
    given = [Kind.A, Kind.B, Pair(1.0, 2.0), Pair(2.0, 1.0), {1}, {1, 2}, range(3), range(4), (1, 2), [1, 2], [2, 2]]
    for _ in range(4):
        for t in given:
            assert_same(g(x, t), f(x, t))


def test_compile_sees_a_set_that_is_an_argument_change() -> None:
    f = lambda x, s: x * (3.0 if "b" in s else 2.0)  # noqa: E731
    g, x, given = by_graphmode_compile(f), torch.ones(3), {"a"}
    for i in range(9):
        if i == 5:
            given.add("b")
        assert_same(g(x, given), f(x, given))


def test_compile_sees_the_order_of_a_dict_that_is_an_argument() -> None:
    f = lambda x, d: x * next(iter(d.values()))  # noqa: E731
    g, x = by_graphmode_compile(f), torch.ones(3)
    for i in range(12):
        d = {"a": 2.0, "b": 3.0} if i // 4 % 2 else {"b": 3.0, "a": 2.0}
        assert_same(g(x, d), f(x, d))


def test_compile_without_versions_of_dicts_leaves_dynamo_s_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "DICT_TAGS", False)
    net, _ = fresh()
    g, x = by_graphmode_compile(net), torch.ones(3)
    with torch.no_grad():
        for i in range(6):
            net.weight.data = torch.full((3,), float(i))
            assert_same(g(x), net(x))
    assert any("versions of dicts" in r for r in reasons())


@pytest.mark.parametrize("touch", ["copied", "set and put back"])
def test_a_class_that_is_what_it_was_does_not_start_anew(touch: str) -> None:
    net, cls = fresh()
    g, x = by_graphmode_compile(net), torch.ones(3)
    with torch.no_grad():
        for _ in range(3):
            g(x)
        if touch == "copied":
            copy.deepcopy(net)  # which leaves a note in the class
        else:
            before = cls.factor  # type: ignore[attr-defined]
            cls.factor = 9.0  # type: ignore[attr-defined]
            cls.factor = before  # type: ignore[attr-defined]
        with replayed(4):
            for _ in range(4):
                assert_same(g(x), net(x))
    assert not reasons()


class Scratch:
    """What a decorator keeps outside the model for the time of a call."""

    current: Any = None
    busy = False


class SetsAndResets(nn.Module):
    """As transformers' output capturing does: state for the time of the call, back to what it was after it."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        self.kept.busy, self.kept.current = True, 1
        y = x * 2
        self.kept.busy, self.kept.current = False, None
        return y


def test_state_that_a_call_leaves_as_it_was_is_no_reason_for_dynamo_s_guards() -> None:
    kept = Scratch()
    kept.busy, kept.current = False, None
    net = SetsAndResets(kept)
    g, x = by_graphmode_compile(net), torch.randn(3)
    with torch.no_grad(), replayed(3):
        for _ in range(6):
            assert_same(g(x), x * 2)
    assert not reasons()


@pytest.mark.parametrize("of_class", [True, False])
def test_state_that_was_another_before_a_call_is_set_by_it(of_class: bool) -> None:
    kept = Scratch()
    if not of_class:
        kept.busy, kept.current = False, None
    g, x = by_graphmode_compile(SetsAndResets(kept)), torch.randn(3)
    with torch.no_grad():
        for i in range(9):
            if i % 3 == 2:
                kept.busy, kept.current = True, "another"
            if i == 7:
                kept.more = i
            assert_same(g(x), x * 2)
            assert kept.busy is False and kept.current is None


def test_an_attribute_set_to_what_another_setattr_makes_of_it() -> None:
    class Doubles:
        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value + getattr(self, "offset", 0))

    kept = Doubles()
    kept.offset = 0
    kept.n = 1

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept.n = 1
            return x * 2

    g, x = by_graphmode_compile(Net()), torch.randn(3)
    with torch.no_grad():
        for i in range(6):
            if i == 3:
                object.__setattr__(kept, "offset", 4)
            assert_same(g(x), x * 2)
            assert kept.n == (1 if i < 3 else 5)


class Logs(collections.OrderedDict[str, Any]):
    """A container with a class of its own: Dynamo takes changes of its items for changes of an object."""


class Names(list[Any]):
    """The same of a list."""


@pytest.mark.parametrize("kind", ["ordered dict", "its subclass", "a list's subclass"])
def test_items_that_a_call_leaves_in_a_container_are_left_by_every_call(kind: str) -> None:
    """Not a set's subclass: there torch.compile loses the item with any backend."""
    kept: Any = {
        "ordered dict": collections.OrderedDict(k=torch.zeros(3)),
        "its subclass": Logs(k=torch.zeros(3)),
        "a list's subclass": Names([torch.zeros(3)]),
    }[kind]

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept["k" if isinstance(kept, dict) else 0] = x * 3
            return x * 2

    g = by_graphmode_compile(Net())
    with torch.no_grad():
        for _ in range(7):
            x = torch.randn(3)
            assert_same(g(x), x * 2)
            assert_same(next(iter(kept.values())) if isinstance(kept, dict) else kept[0], x * 3)
