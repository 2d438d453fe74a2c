"""Norms against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .plain import check, same, tasks

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
npu = torch.ops.npu


def rms(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    over = tuple(range(x.dim() - gamma.dim(), x.dim()))
    rstd = 1 / (x.double().pow(2).mean(over, keepdim=True) + epsilon).sqrt()
    return (x.double() * rstd * gamma.double()).to(x.dtype), rstd.float()


def add_rms(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    x = x1 + x2
    return *rms(x, gamma, epsilon), x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, gamma", [((4, 16), (16,)), ((2, 3, 4, 8), (4, 8)), ((0, 8), (8,))])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], gamma: tuple[int, ...]) -> None:
    x, g = torch.randn(shape, dtype=dtype), torch.rand(gamma, dtype=dtype)
    check(npu.npu_rms_norm, rms, x, g)
    check(npu.npu_rms_norm, rms, x, g, 0.5)


def test_rms_norm_of_columns_and_with_gamma_in_float32() -> None:
    check(npu.npu_rms_norm, rms, torch.randn(8, 6).half().t(), torch.rand(8))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gemma_rms_norm_counts_gamma_from_one(dtype: torch.dtype) -> None:
    x, g = torch.randn(3, 8, dtype=dtype), torch.rand(8, dtype=dtype)
    check(npu.npu_gemma_rms_norm, lambda x, g: rms(x, g.double() + 1), x, g)


@pytest.mark.parametrize("dtype", FLOATS)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x1, x2, g = torch.randn(5, 16, dtype=dtype), torch.randn(5, 16, dtype=dtype), torch.rand(16, dtype=dtype)
    check(npu.npu_add_rms_norm, add_rms, x1, x2, g)
    check(npu.npu_add_rms_norm, add_rms, x1, x2.t().contiguous().t(), g, 1e-3)


def test_results_are_in_plain_order() -> None:
    y, _ = npu.npu_rms_norm(torch.ones(8, 6, device="npu").t(), torch.ones(8, device="npu"))
    assert y.is_contiguous()


def test_a_gamma_that_does_not_fit_and_a_wrong_dtype_are_errors() -> None:
    x = torch.ones(4, 8, device="npu")
    with pytest.raises(RuntimeError, match="npu_rms_norm: gamma's shape"):
        npu.npu_rms_norm(x, torch.ones(4, device="npu"))
    with pytest.raises(RuntimeError, match="npu_rms_norm takes float32"):
        npu.npu_rms_norm(x.int(), torch.ones(8, device="npu"))
    with pytest.raises(RuntimeError, match="npu_add_rms_norm: x1"):
        npu.npu_add_rms_norm(x, x[:2], torch.ones(8, device="npu"))
    with pytest.raises(RuntimeError, match="two devices"):
        npu.npu_rms_norm(x, torch.ones(8))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_any_mode(mode: type) -> None:
    x, g = torch.randn(2, 8), torch.rand(8)
    with mode():
        y, _ = npu.npu_rms_norm(x.npu(), g.npu())
        assert not y.requires_grad
    same(y, rms(x, g)[0])


def test_forward_where_somebody_wants_gradients() -> None:
    x, g = torch.randn(2, 8), torch.rand(8)
    y, _ = npu.npu_rms_norm(x.npu().requires_grad_(), g.npu())
    same(y.detach(), rms(x, g)[0])
    with pytest.raises(RuntimeError, match="npu_rms_norm_backward is not emulated"):
        y.sum().backward()


def test_an_op_without_a_reference_fails_with_its_name() -> None:
    x = torch.ones(4, 8, device="npu")
    before = tasks()
    with pytest.raises(NotImplementedError, match="npu::npu_deep_norm is not emulated: to add it"):
        npu.npu_deep_norm(x, x, x[0], x[0])
    assert tasks() == before


def test_statistics_have_the_dtype_that_the_meta_kernel_says() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    wanted = torch.native_layer_norm(x.to("meta"), [8], None, None, 1e-5)
    found = torch.native_layer_norm(x.npu(), [8], None, None, 1e-5)
    assert [t.dtype for t in found] == [t.dtype for t in wanted]
    same(found[1].float(), x.float().mean(-1, keepdim=True), 1e-2)
