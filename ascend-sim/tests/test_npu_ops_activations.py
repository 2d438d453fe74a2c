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


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_others(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8, dtype=dtype)

    def normal(x: Tensor) -> Tensor:
        return x * (1 + (x / 2**0.5).erf()) / 2

    def by_tanh(x: Tensor) -> Tensor:
        return x * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh()) / 2

    def fast(x: Tensor) -> Tensor:
        return (x.double() / (1 + (-1.702 * x.double()).exp())).to(x.dtype)

    check(npu.npu_gelu, lambda x, **_: normal(x.double()).to(x.dtype), x)
    check(npu.npu_gelu, lambda x, **_: by_tanh(x.double()).to(x.dtype), x, approximate="tanh")
    check(npu.npu_fast_gelu, fast, x)
    check(npu.npu_silu, lambda x: (x.double() * x.double().sigmoid()).to(x.dtype), x)
    check(npu.npu_silu_, lambda x: x.copy_(x.double() * x.double().sigmoid()), x, meta=False)

    def geglu(x: Tensor, dim: int, approximate: int, left: bool) -> tuple[Tensor, Tensor]:
        a, b = x.double().chunk(2, dim)
        gate, value = (a, b) if left else (b, a)
        active = by_tanh(gate) if approximate else normal(gate)
        return (value * active).to(x.dtype), active.to(x.dtype)

    check(npu.npu_geglu, geglu, x, -1, 1, False)
    check(npu.npu_geglu, geglu, x, 0, 0, True)
