"""The passes, each as a pure function on a small graph: what goes, what must stay, and equal results."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from graphmode.program.dead_code import remove_dead_code
from graphmode.program.effects import has_effect, is_foreign_python, is_random, written_arguments
from graphmode.program.no_ops import remove_no_ops
from graphmode.program.single_cat import replace_single_cats

from .programs import aten, same_results, targets, traced

X = torch.arange(12.0).view(3, 4)


def test_dead_code_goes_with_what_only_it_used() -> None:
    def f(x: Tensor) -> Tensor:
        (x.exp() + 1).t()
        return x * 2

    gm = traced(f, X)
    assert remove_dead_code(gm) == 3 and targets(gm) == [aten.mul.Tensor]
    same_results(gm, f, X)
    assert remove_dead_code(gm) == 0


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "a write": lambda x: (x.add_(1), None)[1],
    "a write through a view": lambda x: (x.t()[0].mul_(2), None)[1],
    "a draw": lambda x: (torch.rand_like(x), None)[1],
    "running statistics": lambda x: (torch.native_batch_norm(x, None, None, x[0], x[1], True, 0.1, 1e-5), None)[1],
    "copy_": lambda x: (x.copy_(x.flip(0)), None)[1],
    "out=": lambda x: (torch.add(x, 1, out=x), None)[1],
}


@pytest.mark.parametrize("name", KEPT)
def test_dead_code_keeps_what_changes_something(name: str) -> None:
    def f(x: Tensor) -> Tensor:
        KEPT[name](x)
        return x + 0

    gm = traced(f, X)
    before = [n.target for n in gm.graph.nodes if n.op == "call_function" and has_effect(n)]
    remove_dead_code(gm)
    assert before and [n.target for n in gm.graph.nodes if n.op == "call_function" and has_effect(n)] == before
    if name != "a draw":
        same_results(gm, f, X)


def test_effects_of_ops() -> None:
    assert written_arguments(aten.add_.Tensor) == (0,)
    assert written_arguments(aten.add.out) == (3,)
    assert written_arguments(aten.native_batch_norm.default) == (3, 4)
    assert written_arguments(aten.add.Tensor) == () == written_arguments(len)
    assert is_random(aten.rand_like.default) and is_random(aten.bernoulli_.float) and not is_random(aten.add.Tensor)


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "slice of everything": lambda x: x[:] * 2,
    "view as it is": lambda x: x.view(3, 4) * 2,
    "expand to its size": lambda x: x.expand(3, 4) * 2,
    "permute in order": lambda x: x.permute(0, 1) * 2,
    "detach": lambda x: aten.alias(x) * 2,
    "a chain of them": lambda x: x[:].view(3, 4)[:].permute(0, 1) * 2,
    "then a write": lambda x: (x[:].add_(1), x * 2)[1],
}


@pytest.mark.parametrize("name", NOTHING)
def test_no_ops_go(name: str) -> None:
    gm = traced(NOTHING[name], X)
    assert remove_no_ops(gm) >= 1
    assert not {aten.slice.Tensor, aten.view.default, aten.expand.default, aten.permute.default} & set(targets(gm))
    same_results(gm, NOTHING[name], X)


SOMETHING: dict[str, Callable[[Tensor], Any]] = {
    "clone": lambda x: x.clone().add_(1),
    "a real slice": lambda x: x[1:] * 2,
    "transpose": lambda x: x.t() * 2,
    "another shape": lambda x: x.view(4, 3) * 2,
    "contiguous copy": lambda x: x.t().contiguous().add_(1),
    "another dtype": lambda x: x.view(torch.int32) * 2,
    "a returned view": lambda x: x[:],
    "to the same dtype, copied": lambda x: x.to(torch.float32, copy=True).add_(1),
    "metadata changed in place later": lambda x: ((y := (x + 1)), (v := y[:]).t_(), y * 2, v * 3)[2:],
}


@pytest.mark.parametrize("name", SOMETHING)
def test_no_ops_keep_what_does_something(name: str) -> None:
    gm = traced(SOMETHING[name], X)
    remove_no_ops(gm)
    same_results(gm, SOMETHING[name], X)


def test_a_result_stays_an_object_of_its_own() -> None:
    gm = traced(lambda x: (x[:], x.view(3, 4)), X)
    remove_no_ops(gm)
    x = X.clone()
    gm.recompile()
    a, b = gm(x)
    assert a is not x and b is not x and a is not b and a.data_ptr() == x.data_ptr()


def test_a_cat_of_one_becomes_a_copy() -> None:
    f = lambda x: torch.cat([x]).add_(1)  # noqa: E731
    gm = traced(f, X)
    assert replace_single_cats(gm) == 1
    assert aten.cat.default not in targets(gm) and aten.clone.default in targets(gm)
    same_results(gm, f, X)


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: torch.cat([x, x]), X),
        (lambda x: torch.cat([x]), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        (lambda x: torch.cat([x], 1), X.t()),
        (lambda x: torch.cat([x]), torch.empty_strided((2, 1, 3, 3), (9, 1, 3, 1)).fill_(1)),
        (lambda x: torch.cat([x.expand(3, 4)]), torch.ones(1, 4)),
    ],
)
def test_a_cat_keeps_eager_s_strides(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    gm = traced(f, x)
    replace_single_cats(gm)
    same_results(gm, f, x)
    assert gm(x).stride() == f(x).stride() and gm(x).data_ptr() != x.data_ptr()


def test_python_is_a_user_s_unless_it_comes_from_torch_python_or_einops() -> None:
    def note(x: Tensor) -> Tensor:
        return x

    def of(module: str) -> FunctionType:
        return FunctionType(note.__code__, {"__name__": module})

    ours = (torch.sin, torch.nn.functional.gelu, torch.nn.functional.softmax, torch.Tensor.add, of("einops.einops"))
    assert not any(is_foreign_python(f) for f in ours)
    assert is_foreign_python(note) and is_foreign_python(of("einopsy")) and is_foreign_python(of(""))
