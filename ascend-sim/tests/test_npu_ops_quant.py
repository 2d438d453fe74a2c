"""Quantisation against its definitions in float64; a number between two may go either way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .plain import check, same, tasks

npu = torch.ops.npu
HALVES = [torch.float16, torch.bfloat16]


def int8(x: Tensor) -> Tensor:
    return x.round().clamp(-128, 127).to(torch.int8)


def by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.double().abs().amax(-1, keepdim=True) / 127
    return int8(x.double() / scale), scale.squeeze(-1).float()


def near(found: object, wanted: object) -> None:
    """Int8 within one, the rest as ever."""
    for one, other in zip(found, wanted, strict=True):  # type: ignore[call-overload]
        same(one, other, 1 if other.dtype == torch.int8 else None)


@pytest.mark.parametrize("dtype", HALVES)
def test_dynamic_quant(dtype: torch.dtype) -> None:
    x, smooth = torch.randn(4, 6, 16, dtype=dtype), torch.rand(16, dtype=dtype)
    before = tasks()
    found = npu.npu_dynamic_quant(x.npu())
    assert tasks() - before == 1
    near(found, by_row(x))
    near(npu.npu_dynamic_quant(x.npu(), smooth_scales=smooth.npu()), by_row(x.double() * smooth.double()))
    each, ends = torch.rand(2, 16, dtype=dtype), torch.tensor([5, 24], dtype=torch.int32)
    wanted = x.double().flatten(0, 1).clone()
    wanted[:5] *= each[0].double()
    wanted[5:] *= each[1].double()
    found = npu.npu_dynamic_quant(x.npu(), smooth_scales=each.npu(), group_index=ends.npu())
    near(found, by_row(wanted.view(4, 6, 16)))


def test_dynamic_quant_is_replayed() -> None:
    x = torch.randn(4, 16).half()
    check(npu.npu_dynamic_quant, by_row, x, tolerance=1)


def test_dynamic_quant_of_zeros_and_of_a_whole_tensor() -> None:
    y, scale = npu.npu_dynamic_quant(torch.zeros(2, 8).half().npu())
    assert not y.any() and not scale.any()
    x = torch.randn(4, 8).half()
    y, scale = npu.npu_dynamic_quant(x.npu(), quant_mode="pertensor")
    wanted = by_row(x.view(1, -1))
    near((y, scale), (wanted[0].view(4, 8), wanted[1]))
    with pytest.raises(RuntimeError, match="another dtype than int8"):
        npu.npu_dynamic_quant(x.npu(), dst_type=torch.quint4x2)


@pytest.mark.parametrize("dtype", HALVES)
def test_dynamic_quant_asymmetric(dtype: torch.dtype) -> None:
    x = torch.randn(4, 16, dtype=dtype)
    wide = x.double()
    high, low = wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True)
    scale = (high - low) / 255
    offset = 127 - high / scale
    near(
        npu.npu_dynamic_quant_asymmetric(x.npu()),
        (int8(wide / scale + offset), scale.squeeze(-1).float(), offset.squeeze(-1).float()),
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_of_a_sum_quantised(dtype: torch.dtype) -> None:
    x1, x2, gamma, beta = (torch.randn(*s, dtype=dtype) for s in ((4, 16), (4, 16), (16,), (16,)))
    x = x1 + x2
    y = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * gamma.double()
    scale, zero = torch.rand(16) + 0.05, torch.randint(-9, 9, (16,), dtype=torch.int32)
    given = (x1.npu(), x2.npu(), gamma.npu())
    found = npu.npu_add_rms_norm_quant(*given, scale.npu(), zero.npu())
    near((found[0], found[2]), (int8(y / scale.double() + zero), x))
    found = npu.npu_add_rms_norm_quant(*given, scale.npu(), None, beta=beta.npu(), div_mode=False)
    near((found[0], found[2]), (int8((y + beta.double()) * scale.double()), x))

    smooth = [torch.rand(16, dtype=dtype) for _ in range(2)]
    found = npu.npu_add_rms_norm_dynamic_quant(*given)
    wanted, scales = by_row(y)
    near((found[0], found[2], found[3]), (wanted, x, scales))
    assert found[1].numel() == 0 and found[4].numel() == 0
    found = npu.npu_add_rms_norm_dynamic_quant(*given, smooth_scale1=smooth[0].npu(), smooth_scale2=smooth[1].npu())
    both = [by_row(y * s.double()) for s in smooth]
    near(found, (both[0][0], both[1][0], x, both[0][1], both[1][1]))


def test_quantize_by_division_along_an_axis_and_by_multiplication_along_the_last() -> None:
    x, scale, zero = torch.randn(3, 4, 5), torch.rand(4) + 0.1, torch.randint(-5, 5, (4,), dtype=torch.int32)
    found = npu.npu_quantize(x.npu(), scale.npu(), zero.npu(), torch.qint8, 1)
    near([found], [int8(x.double() / scale.double().view(1, 4, 1) + zero.view(1, 4, 1))])
    last = torch.rand(5) * 30
    found = npu.npu_quantize(x.npu(), last.npu(), None, torch.qint8, -1, False)
    near([found], [int8(x.double() * last.double())])


@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, torch.int8, torch.int32])
def test_quant_matmul(to: torch.dtype) -> None:
    a, b = torch.randint(-128, 128, (5, 16), dtype=torch.int8), torch.randint(-128, 128, (16, 6), dtype=torch.int8)
    scale, per_token = torch.rand(6) / 2000, torch.rand(5)
    bias = torch.randint(-999, 999, (6,), dtype=torch.int32)
    whole = a.double() @ b.double() + bias
    wanted = whole * scale.double()
    extra = {}
    if to in HALVES:
        wanted, extra = wanted * per_token.double().unsqueeze(1), {"pertoken_scale": per_token.npu()}
    found = npu.npu_quant_matmul(a.npu(), b.npu(), scale.npu(), bias=bias.npu(), output_dtype=to, **extra)
    near([found], [int8(wanted) if to == torch.int8 else (whole if to == torch.int32 else wanted).to(to)])


def test_quant_matmul_of_what_is_not_emulated() -> None:
    x = torch.ones(2, 2, dtype=torch.int32, device="npu")
    with pytest.raises(RuntimeError, match="npu_quant_matmul of Int and Int is not emulated"):
        npu.npu_quant_matmul(x, x, torch.ones(2, device="npu"), output_dtype=torch.float16)


@pytest.mark.parametrize("groups", [0, 32])
def test_weight_quant_batchmatmul(groups: int) -> None:
    x, weight = torch.randn(3, 64).half(), torch.randint(-128, 128, (64, 6), dtype=torch.int8)
    rows = 2 if groups else 1
    scale, offset = torch.rand(rows, 6).half() / 100, torch.randn(rows, 6).half()
    every = 32 if groups else 64
    real = (weight.double() + offset.double().repeat_interleave(every, 0)) * scale.double().repeat_interleave(every, 0)

    def plain(x: Tensor, *_: Tensor, **__: int) -> Tensor:
        return (x.double() @ real).half()

    found = npu.npu_weight_quant_batchmatmul(
        x.npu(), weight.npu(), scale.npu(), offset.npu(), antiquant_group_size=groups
    )
    same(found, plain(x), 1e-2)
