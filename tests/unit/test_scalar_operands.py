"""A varying Python number stays a tensor where that is the same, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphmode.program.dead_code import remove_dead_code
from graphmode.program.scalar_operands import use_scalar_tensors

from .programs import aten, same_results, targets, traced

X = torch.tensor([1.5, -0.0, 3.25])
NUMBER = torch.tensor(0.1, dtype=torch.double)


def program(x: Tensor, number: Tensor) -> tuple[Tensor, ...]:
    s = aten.item(number)
    return x * s, x + s, x - s, s - x, x / s, s * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_arithmetic_takes_the_tensor_and_reads_nothing(dtype: torch.dtype) -> None:
    gm = traced(program, X.to(dtype), NUMBER)
    assert use_scalar_tensors(gm) == 6
    remove_dead_code(gm)
    assert aten.item.default not in targets(gm)
    same_results(gm, program, X.to(dtype), NUMBER)


@pytest.mark.parametrize("x", [torch.tensor([1, 2]), torch.tensor(2.0), torch.tensor([True, False])])
def test_where_the_number_decides_the_dtype_it_is_read(x: Tensor) -> None:
    f = lambda x, number: x * aten.item(number)  # noqa: E731
    gm = traced(f, x, NUMBER)
    assert use_scalar_tensors(gm) == 0
    same_results(gm, f, x, NUMBER)


def test_another_use_still_reads_it() -> None:
    f = lambda x, number: (x * aten.item(number), torch.full((2,), aten.item(number)))  # noqa: E731
    gm = traced(f, X, NUMBER)
    assert use_scalar_tensors(gm) == 1
    remove_dead_code(gm)
    assert targets(gm).count(aten.item.default) == 1
    same_results(gm, f, X, NUMBER)
