"""A program's script does what its Python code does, frees what nobody needs, and refuses what it can't do."""

from __future__ import annotations

import operator
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef

import graphmode
from graphmode import _C
from graphmode.runtime.script import kinds_of
from graphmode.runtime.script import script_of as script_for

from .programs import aten, traced


def script_of(gm: fx.GraphModule, args: tuple[Any, ...]) -> _C.Script | None:
    try:
        return script_for(gm, kinds_of(args), 1000)
    except _C.Unscriptable:
        return None


X = torch.arange(12.0).reshape(3, 4)


def in_place_and_views(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    a = x.t()
    a[0].mul_(2)
    b = torch.where(x > y, x, -y)
    x.add_(1)
    return b, a, x, x[:, 1:3].contiguous()


def lists(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    first, second = torch.cat([x, y, x], 1).split([4, 8], 1)
    values, order = torch.sort(second, 1)
    picked = x[torch.tensor([2, 0]), :]
    return first, values, order, picked, torch.stack(list(y.unbind(0)), 1)


def numbers_and_types(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x * 3 + 1.5, (x + 1j).abs(), x.to(torch.bfloat16).sum(-1, dtype=torch.float64), torch.full((2,), 7), x > 4


@pytest.mark.parametrize("f", [in_place_and_views, lists, numbers_and_types], ids=lambda f: f.__name__)
def test_it_does_what_the_code_does(f: Callable[..., Any]) -> None:
    gm = traced(f, X, X)
    script = script_of(gm, (X, X))
    assert script is not None
    for start in (X, X - 5):
        mine, theirs = (start.clone(), X.flip(0)), (start.clone(), X.flip(0))
        got, want = script.run(mine), gm(*theirs)
        assert got is not None
        torch.testing.assert_close(got, list(want), rtol=0, atol=0)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert [r.stride() for r in got] == [r.stride() for r in want]


def test_a_result_that_is_an_argument_is_the_same_object() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.add_(1), x

    x = X.clone()
    script = script_of(traced(f, x), (x,))
    assert script is not None
    results = script.run((x,))
    assert results is not None and results[0] is x and results[1] is x


def test_the_data_of_a_tensor_is_its_memory_and_not_its_version() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    data = graph.call_function(torch._C._autograd._get_data_attr, (x,))  # type: ignore[attr-defined]
    graph.output((graph.call_function(aten.add_.Tensor, (data, 1)),))
    given = X.clone()
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (given,))
    assert script is not None
    assert script.run((given,)) is not None
    assert torch.equal(given, X + 1) and given._version == 0


def sized(arithmetic: Callable[[Any, Any], Any]) -> fx.GraphModule:
    """`f(x, n, m)`: a tensor of `arithmetic(n, m)` rows."""
    graph = fx.Graph()
    x, n, m = (graph.placeholder(name) for name in "xnm")
    rows = graph.call_function(arithmetic, (n, m))
    made = graph.call_function(aten.new_zeros.default, (x, [rows, 2, n]))
    graph.output((made, rows, None))
    return fx.GraphModule(torch.nn.Module(), graph)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, torch.sym_min, torch.sym_max]


@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids=lambda f: f.__name__)
def test_sizes_are_computed_as_python_does(arithmetic: Callable[[Any, Any], Any]) -> None:
    gm = sized(arithmetic)
    script = script_of(gm, (X, 7, 2))
    assert script is not None
    for n, m in ((7, 2), (9, 4), (6, 3)):
        got = script.run((X, n, m))
        assert got is not None
        assert got[0].shape == gm(X, n, m)[0].shape and got[1:] == [arithmetic(n, m), None]


@pytest.mark.parametrize(("n", "m"), [(7, -2), (-7, 2), (-7, -2), (6, -3), (-1, 5), (5, -1), (0, -1)])
def test_division_rounds_down(n: int, m: int) -> None:
    for arithmetic in (operator.floordiv, operator.mod):
        graph = fx.Graph()
        a, b = graph.placeholder("a"), graph.placeholder("b")
        graph.output((graph.call_function(arithmetic, (a, b)),))
        script = script_of(fx.GraphModule(torch.nn.Module(), graph), (1, 1))
        assert script is not None
        assert script.run((n, m)) == [arithmetic(n, m)]


@pytest.mark.parametrize(
    ("arithmetic", "n", "m"),
    [
        (operator.mul, 2**40, 2**40),
        (operator.add, 2**63 - 1, 1),
        (operator.sub, -(2**63), 1),
        (operator.floordiv, -(2**63), -1),
        (operator.mod, 7, 0),
        (operator.floordiv, 7, 0),
    ],
)
def test_of_numbers_that_have_no_place_nothing_runs(arithmetic: Callable[[Any, Any], Any], n: int, m: int) -> None:
    graph = fx.Graph()
    x, a, b = (graph.placeholder(name) for name in "xab")
    written = graph.call_function(aten.add_.Tensor, (x, 1))
    graph.output((written, graph.call_function(arithmetic, (a, b))))
    given = X.clone()
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (given, 1, 1))
    assert script is not None
    assert script.run((given, n, m)) is None
    assert torch.equal(given, X)


def test_a_division_by_a_size_that_is_zero_is_pythons_error() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 0))
    graph.output((graph.call_function(operator.floordiv, (7, size)),))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X,))
    assert script is not None
    assert script.run((X,)) == [2]
    with pytest.raises(ZeroDivisionError):
        script.run((X[:0],))


def test_an_item_that_is_not_there_is_pythons_error() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(operator.getitem, (graph.call_function(aten.split.Tensor, (x, 1)), 5)),))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X,))
    assert script is not None
    with pytest.raises(IndexError, match="list index out of range"):
        script.run((X,))


def test_arguments_are_those_of_their_places_in_the_graph() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(aten.relu.default, (x,))
    y = graph.placeholder("y")
    graph.output((graph.call_function(aten.sub.Tensor, (first, y)),))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    script = script_of(gm, (X, X))
    assert script is not None
    got = script.run((X, X * 3))
    assert got is not None
    assert torch.equal(got[0], X - X * 3)
    assert script_of(gm, (X,)) is None


def test_a_list_given_to_an_op_of_others_is_a_new_one_each_time() -> None:
    @torch.library.custom_op("graphmode_test::shifted", mutates_args=())
    def shifted(x: Tensor, by: list[int], scales: list[float]) -> Tensor:
        return x + sum(by) * scales[0]

    @shifted.register_fake
    def _(x: Tensor, by: list[int], scales: list[float]) -> Tensor:
        return torch.empty_like(x)

    script = script_of(traced(lambda x: torch.ops.graphmode_test.shifted(x, [1, 2], [0.5]), X), (X,))
    assert script is not None
    for _ in range(2):
        got = script.run((X,))
        assert got is not None
        assert torch.equal(got[0], X + 1.5)


def test_one_number_stands_for_a_list_of_them() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    pooled = graph.call_function(aten.max_pool2d.default, (x, 2))
    graph.output((pooled,))
    images = torch.randn(1, 2, 4, 4)
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (images,))
    assert script is not None
    got = script.run((images,))
    assert got is not None
    assert torch.equal(got[0], torch.max_pool2d(images, 2))


def test_dynamic_sizes() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y]).view(2, x.shape[0], -1).transpose(0, 1).reshape(x.shape[0] * 2, -1)

    gm = make_fx(f, tracing_mode="symbolic")(X, X + 1)
    script = script_of(gm, (X, X))
    assert script is not None
    for rows in (3, 5, 1):
        x = torch.randn(rows, 4)
        got = script.run((x, x + 1))
        assert got is not None
        torch.testing.assert_close(got[0], f(x, x + 1), rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [(X,), (X, 3), (X, 2.0, X), (X, True), (X, 2**70), (3, X)], ids=str)
def test_of_other_arguments_nothing_runs(arguments: tuple[Any, ...]) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.add_(1) * y

    script = script_of(traced(f, X, X), (X, X))
    assert script is not None
    before = X.clone()
    assert script.run(arguments) is None
    assert torch.equal(X, before)


def test_a_subclass_keeps_its_own_functions() -> None:
    class Loud(Tensor):
        pass

    script = script_of(traced(lambda x: x * 2, X), (X,))
    assert script is not None
    assert script.run((X.as_subclass(Loud),)) is None
    assert script.run((torch.nn.Parameter(X, requires_grad=False),)) is not None
    with torch._C.DisableTorchFunctionSubclass():  # as Dynamo calls what it compiled: it has traced them
        got = script.run((X.as_subclass(Loud),))
    assert got is not None and type(got[0]) is Tensor and torch.equal(got[0], X * 2)


def test_values_go_when_nobody_needs_them() -> None:
    alive: list[StorageWeakRef] = []
    most = 0

    @torch.library.custom_op("graphmode_test::seen", mutates_args=())
    def seen(x: Tensor) -> Tensor:
        nonlocal most
        made = x.clone()
        alive.append(StorageWeakRef(made.untyped_storage()))
        most = max(most, sum(not r.expired() for r in alive))
        return made

    @seen.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def f(x: Tensor) -> Tensor:
        for _ in range(20):
            x = torch.ops.graphmode_test.seen(x)
        return x

    gm = traced(f, X)
    script = script_of(gm, (X,))
    assert script is not None
    alive.clear()
    most = 0
    assert script.run((X,)) is not None
    assert most == 2  # what a call takes, and what it makes


@pytest.mark.parametrize(
    ("f", "kind"),
    [(lambda x: aten.view.default(x, [5, 5]), RuntimeError), (lambda x: aten.select.int(x, 0, 9), IndexError)],
)
def test_errors_are_those_of_the_code(f: Callable[[Tensor], Tensor], kind: type[Exception]) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(f(fx.Proxy(x)).node)  # type: ignore[arg-type,attr-defined]
    gm = fx.GraphModule(torch.nn.Module(), graph)
    script = script_of(gm, (X,))
    assert script is not None
    with pytest.raises(kind) as mine:
        script.run((X,))
    with pytest.raises(kind) as theirs:
        gm(X)
    assert str(mine.value).splitlines()[0] == str(theirs.value).splitlines()[0]


def test_an_error_of_an_op_in_python_is_its_own() -> None:
    class Mine(Exception):
        pass

    @torch.library.custom_op("graphmode_test::raises", mutates_args=())
    def raises(x: Tensor) -> Tensor:
        raise Mine("as I said")

    @raises.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    script = script_of(traced(lambda x: torch.ops.graphmode_test.raises(x), X), (X,))
    assert script is not None
    with pytest.raises(Mine, match="as I said"):
        script.run((X,))


def calls_python(x: fx.Node, graph: fx.Graph) -> fx.Node:
    return graph.call_function(torch.relu, (x,))


def calls_a_method(x: fx.Node, graph: fx.Graph) -> fx.Node:
    return graph.call_method("relu", (x,))


def takes_a_number_for_a_tensor(x: fx.Node, graph: fx.Graph) -> fx.Node:
    size = graph.call_function(aten.sym_size.int, (x, 0))
    return graph.call_function(aten.mul.Tensor, (x, size))


def takes_an_object(x: fx.Node, graph: fx.Graph) -> fx.Node:
    return graph.call_function(aten.mul.Tensor, (x, list(graph.nodes)[1]))


def names_no_argument(x: fx.Node, graph: fx.Graph) -> fx.Node:
    return graph.call_function(aten.relu.default, (x,), {"other": 1})


def gives_a_place_what_has_only_a_name(x: fx.Node, graph: fx.Graph) -> fx.Node:
    return graph.call_function(aten.add.Tensor, (x, x, 2))


def gives_a_dict(x: fx.Node, graph: fx.Graph) -> Any:
    return {"x": x}


class Label(torch._opaque_base.OpaqueBase):
    """What a custom op may take besides tensors and numbers."""

    def __init__(self, number: int) -> None:
        self.number = number


torch._library.opaque_object.register_opaque_type(Label, typ="reference")


@torch.library.custom_op("graphmode_test::labelled", mutates_args=())
def labelled(x: Tensor, label: Label) -> Tensor:
    return x + label.number


@pytest.mark.parametrize(
    "call",
    [
        calls_python,
        calls_a_method,
        takes_a_number_for_a_tensor,
        takes_an_object,
        names_no_argument,
        gives_a_place_what_has_only_a_name,
        gives_a_dict,
    ],
    ids=lambda f: f.__name__,
)
def test_what_has_no_script(call: Callable[[fx.Node, fx.Graph], fx.Node]) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("other")
    graph.output((call(x, graph),))
    assert script_of(fx.GraphModule(torch.nn.Module(), graph), (X, object())) is None


def test_an_object_goes_to_the_ops_that_take_one_and_to_the_results() -> None:
    graph = fx.Graph()
    x, other = graph.placeholder("x"), graph.placeholder("other")
    graph.output((graph.call_function(torch.ops.graphmode_test.labelled.default, (x, other)), other))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X, Label(1)))
    assert script is not None
    for number in (3, 5):
        label = Label(number)
        held = sys.getrefcount(label)
        got = script.run((X, label))
        assert got is not None and torch.equal(got[0], X + number) and got[1] is label
        del got
        assert sys.getrefcount(label) == held


enter, leave = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast


def test_switches_of_modes_hold_from_where_they_stand() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    entered = graph.call_function(enter, ("cpu", torch.bfloat16, True, False))
    inside = graph.call_function(aten.mm.default, (x, x))
    graph.call_function(leave, (entered,))
    after = graph.call_function(aten.mm.default, (x, x))
    graph.call_function(torch._C._set_grad_enabled, (False,))
    graph.output((inside, after, graph.call_function(aten.mul.Tensor, (x, 2))))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X,))
    assert script is not None
    for rows in (3, 4):
        square = torch.randn(rows, rows, requires_grad=True)
        with torch.enable_grad():
            got = script.run((square,))
            assert not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert got is not None and [r.dtype for r in got] == [torch.bfloat16, torch.float32, torch.float32]
        assert [r.requires_grad for r in got] == [True, True, False]
        assert torch.equal(got[1], square @ square)


def test_what_a_switch_of_modes_raises_is_the_call_s() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, ("no bool",))
    graph.output((x,))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X,))
    assert script is not None
    with pytest.raises(TypeError, match="enabled"):
        script.run((X,))


def test_an_object_that_nobody_takes_is_no_hindrance() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("other")
    graph.output((graph.call_function(aten.relu.default, (x,)),))
    script = script_of(fx.GraphModule(torch.nn.Module(), graph), (X, object()))
    assert script is not None
    got = script.run((X - 6, object()))
    assert got is not None
    assert torch.equal(got[0], torch.relu(X - 6))


def test_the_native_part_refuses_what_is_no_value() -> None:
    script = _C.Script("t", 0)
    with pytest.raises(IndexError):
        script.item(_C.Register(9), 0)
    with pytest.raises(_C.Unscriptable, match="no op"):
        script.call("aten::no_such_op", "")
    with pytest.raises(_C.Unscriptable, match="without"):
        script.call("aten::mul", "Tensor", _C.Register(0))


# --- runs of calls that are one kernel --------------------------------------------------------------------------------


def norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    added = x.float() + residual.float()
    scaled = added * torch.rsqrt(added.pow(2).mean(-1, keepdim=True) + 1e-5)
    return added.to(x.dtype), scaled.to(x.dtype) * weight


def norms(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    for _ in range(3):
        residual, x = norm(x, residual, weight)
        x = torch.softmax(x, -1)  # in no run
    return residual, x


def operands(rows: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    torch.manual_seed(rows)
    return (*torch.randn(2, rows, 64).to(dtype), torch.randn(64).to(dtype))


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_run_is_learnt_at_its_first_call_and_then_one_kernel(dtype: torch.dtype) -> None:
    """Of a float32 norm, what makes float32 of it hands its argument on."""
    gm = traced(norms, *operands(3, dtype))
    script = script_for(gm, "ttt", 1000)
    with torch.inference_mode():
        for rows in (3, 1, 3, 700, 2, 1, 701):
            assert equal(script.run(operands(rows, dtype)), norms(*operands(rows, dtype)))
            assert script.fused() == (33 if dtype == torch.bfloat16 else 21)


def test_other_layouts_are_learnt_anew() -> None:
    x, residual, weight = operands(6)
    apart = [torch.cat([t, t], 1)[:, :64] for t in (x, residual)]
    swapped = [t.t().contiguous().t() for t in (x, residual)]
    script = script_for(traced(norm, x, residual, weight), "ttt", 1000)
    with torch.inference_mode():
        for a, b in ((x, residual), (apart[0], residual), (x, apart[1]), (swapped[0], swapped[1]), (x, residual)):
            for _ in range(2):
                assert equal(script.run((a, b, weight)), norm(a, b, weight))


def test_strides_are_eagers_where_a_dimension_is_one() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        scaled = x.float() * 2
        return scaled, scaled.to(torch.bfloat16).abs(), x.clone()

    heads = torch.randn(1, 960).bfloat16()[:, :576].view(1, 9, 64)
    script = script_for(traced(f, heads), "t", 1000)
    with torch.inference_mode():
        for _ in range(3):
            assert equal(script.run((heads,)), f(heads))


def test_what_is_no_plain_tensor_goes_call_by_call() -> None:
    script = script_for(traced(lambda x: (x.neg().abs(),), torch.ones(3, 32)), "t", 1000)
    for x in (torch.eye(3, 32).to_sparse(), torch.eye(3, 32)):
        for _ in range(3):
            got = script.run((x,))
            assert got is not None and torch.equal(got[0].to_dense(), torch.eye(3, 32))
    assert script.fused() == 2


def test_gradients_of_constants_are_kept() -> None:
    class Scales(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(32))

    graph, module = fx.Graph(), Scales()
    x = graph.placeholder("x")
    made = graph.call_function(aten.mul.Tensor, (x, graph.get_attr("w")))
    graph.output((graph.call_function(aten.neg.default, (made,)),))
    script = script_for(fx.GraphModule(module, graph), "t", 1000)
    for _ in range(3):
        got = script.run((torch.ones(2, 32),))
        assert got is not None
        got[0].sum().backward()
    assert torch.equal(module.w.grad, torch.full((32,), -6.0))


def test_rows_are_split_over_threads() -> None:
    """Where eager would use them: another thread than this one has had processor time."""
    before = {thread: ticks(thread) for thread in os.listdir("/proc/self/task")}
    torch.set_num_threads(2)
    x, residual, weight = torch.randn(20_000, 64), torch.randn(20_000, 64), torch.randn(64)
    script = script_for(traced(norm, *operands(3, torch.float32)), "ttt", 1000)
    with torch.inference_mode():
        start = time.process_time()
        while time.process_time() - start < 1:
            script.run((x, residual, weight))
    assert script.fused() == 7
    worked = [t for t in os.listdir("/proc/self/task") if ticks(t) - before.get(t, 0) > 5]
    assert len(worked) >= 2


def ticks(thread: str) -> int:
    """Processor time that a thread of this process has had, in ticks of 10 ms."""
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def test_a_result_that_is_handed_on_is_the_same_object() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        made = (x * 2).abs()
        return made, made.float(), x.float()

    script = script_for(traced(f, torch.ones(3, 32)), "t", 1000)
    x = torch.randn(3, 32)
    with torch.inference_mode():
        for _ in range(3):
            got = script.run((x,))
            assert got is not None and equal(got, f(x))
            assert got[0].data_ptr() == got[1].data_ptr() != got[2].data_ptr() == x.data_ptr()
    assert script.fused() == 2


def test_inside_a_run_values_go_when_nobody_needs_them() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return ((x * 2 + y).sqrt() * 3 + y,)  # where the root is no kernel's, it stands between two

    gm = traced(f, torch.ones(2, 32), torch.ones(2, 32))
    script = script_for(gm, "tt", 1000)
    x, y = torch.rand(2, 4096, 1024)
    for _ in range(3):
        assert equal(script.run((x, y)), f(x, y))


@pytest.mark.parametrize("fuel", [0, 1, 2, 9])
def test_fuel_bounds_how_many_runs_become_a_kernel(fuel: int) -> None:
    script = script_for(traced(norms, *operands(3)), "ttt", fuel)
    for _ in range(2):
        assert equal(script.run(operands(3)), norms(*operands(3)))
    assert script.fused() == 11 * min(fuel, 3)


def test_under_autocast_and_in_a_capture_a_run_is_its_calls() -> None:
    script = script_for(traced(norms, *operands(3)), "ttt", 1000)
    script.run(operands(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(script.run(operands(3)), norms(*operands(3)))
    given = operands(3)
    with torch.inference_mode(), graphmode.Graph() as graph:
        results = script.run(given)
    assert results is not None
    with torch.inference_mode():
        given[0].add_(1)
        graph.replay()
    assert equal(results, norms(*given))


def test_a_run_that_the_program_puts_under_autocast_is_its_calls() -> None:
    gm = traced(norms, *operands(3))
    nodes = list(gm.graph.nodes)
    calls = [n for n in nodes if n.op == "call_function"]
    with gm.graph.inserting_before(calls[0]):
        entered = gm.graph.call_function(enter, ("cpu", torch.bfloat16, True, False))
    with gm.graph.inserting_before(nodes[-1]):
        gm.graph.call_function(leave, (entered,))
    script = script_for(gm, "ttt", 1000)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            want = norms(*operands(3))
        assert equal(script.run(operands(3)), want)
        assert not torch.is_autocast_enabled("cpu")
    assert script.fused() == 0


def test_what_comes_before_and_after_autocast_is_one_kernel_each() -> None:
    gm = traced(lambda x, y, z: (*norm(x * 1, y, z), *norm(x * 2, y, z), *norm(x * 3, y, z)), *operands(3))
    whole = script_for(gm, "ttt", 1000)
    for _ in range(2):
        whole.run(operands(3))
    calls = [n for n in gm.graph.nodes if n.op == "call_function"]
    third = len(calls) // 3
    with gm.graph.inserting_before(calls[third]):
        entered = gm.graph.call_function(enter, ("cpu", torch.bfloat16, True, False))
    with gm.graph.inserting_before(calls[2 * third]):
        gm.graph.call_function(leave, (entered,))
    gm.recompile()
    script = script_for(gm, "ttt", 1000)
    for _ in range(3):
        want = gm(*operands(3))
        assert equal(script.run(operands(3)), want)
    assert 0 < script.fused() < whole.fused()


def test_results_are_as_eagers_under_gradients_and_inference() -> None:
    script = script_for(traced(norm, *operands(3)), "ttt", 1000)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            got, want = script.run(operands(3)), norm(*operands(3))
            assert got is not None
            for a, b in zip(got, want, strict=True):
                assert (a.is_inference(), a.requires_grad) == (b.is_inference(), b.requires_grad)
                assert a.is_inference() or a._version == b._version


def test_threads_learn_and_run_one_script() -> None:
    script = script_for(traced(norms, *operands(3)), "ttt", 1000)
    want = {rows: norms(*operands(rows)) for rows in range(1, 60)}

    def run(start: int) -> bool:
        order = [(start + 7 * i) % 59 + 1 for i in range(200)]
        return all(equal(script.run(operands_[rows]), want[rows]) for rows in order)

    operands_ = {rows: operands(rows) for rows in want}
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
