"""Activations against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .plain import check

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
npu = torch.ops.npu


def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.double().chunk(2, dim)
    return (a / (1 + (-a).exp()) * b).to(x.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_swiglu(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 8, dtype=dtype)
    check(npu.npu_swiglu, swiglu, x)
    check(npu.npu_swiglu, swiglu, x, 1)
    check(npu.npu_swiglu, swiglu, x.transpose(0, 2))


def test_swiglu_of_what_cant_be_halved() -> None:
    with pytest.raises(RuntimeError, match="npu_swiglu: dimension -1"):
        npu.npu_swiglu(torch.ones(4, 7, device="npu"))
