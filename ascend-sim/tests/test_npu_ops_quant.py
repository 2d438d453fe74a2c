"""Quantisation against its definitions in float64; a number between two may go either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from .plain import check, same, tasks, to

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


def both(op: Any, plain: Any, *args: Any, **how: Any) -> None:
    """Int8 within one and the rest as ever, eagerly; replayed, too, if only roughly."""
    near(op(*(to("npu", a) for a in args), **{n: to("npu", a) for n, a in how.items()}), plain(*args, **how))
    check(op, plain, *args, tolerance=1, **how)


def by_group(factors: Tensor, counts: list[int]) -> Tensor:
    """A row of factors for each row of the groups."""
    return torch.cat([f.reshape(1, -1).expand(n, -1) for f, n in zip(factors.double(), counts, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("listed", [0, 1])
@pytest.mark.parametrize("wide", [True, False])
def test_swiglu_quant(dtype: torch.dtype, left: bool, listed: int, wide: bool) -> None:
    counts = [2, 0, 4]
    x, scales = torch.randn(6, 16, dtype=dtype), torch.rand(3, 8) + 0.5 if wide else torch.rand(3) + 0.5
    groups = torch.tensor(counts if listed else [2, 2, 6], dtype=torch.int32)

    def activated(x: Tensor) -> Tensor:
        a, b = x.double().chunk(2, -1)
        return silu(a) * b if left else a * silu(b)

    def plain(x: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        return by_row(activated(x) * by_group(how["smooth_scales"], counts))

    how = {"group_index": groups, "activate_left": left, "group_list_type": listed}
    # op-plugin's own meta kernel takes no missing dst_type.
    both(npu.npu_swiglu_quant, plain, x, smooth_scales=scales, quant_mode=1, dst_type=torch.int8, **how)
    offsets, found = torch.randn_like(scales) * 9, {n: to("npu", a) for n, a in how.items()}
    y, _ = npu.npu_swiglu_quant(x.npu(), smooth_scales=scales.npu() * 20, offsets=offsets.npu(), **found)
    near([y], [int8(activated(x) * by_group(scales * 20, counts) + by_group(offsets, counts))])
    alone = npu.npu_swiglu_quant(x.view(2, 3, 16).npu(), activate_left=left, quant_mode=1)
    near(alone, by_row(activated(x.view(2, 3, 16))))


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("left", [True, False])
def test_dequant_swiglu_quant_of_groups(mode: int, left: bool) -> None:
    counts, x = [2, 1, 3], torch.randint(-2000, 2000, (6, 16), dtype=torch.int32)
    weight, token, smooth = torch.rand(3, 16) / 100, torch.rand(6, 1), torch.rand(3, 8) + 0.5

    def plain(x: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        y = x.double() * by_group(how["weight_scale"], counts) * how["activation_scale"].double()
        a, b = (y[..., ::2], y[..., 1::2]) if mode == 1 else y.chunk(2, -1)
        if mode != 1 and not left:
            a, b = b, a
        if mode == 0:
            out = silu(a) * b
        else:
            a, b = a.clamp(max=3), b.clamp(-3, 3)
            out = a * (1.5 * a).sigmoid() * (b + 0.5)
        return by_row(out * by_group(how["quant_scale"], counts))

    both(
        npu.npu_dequant_swiglu_quant,
        plain,
        x,
        weight_scale=weight,
        activation_scale=token,
        quant_scale=smooth,
        group_index=torch.tensor(counts),
        activate_left=left,
        quant_mode=1,
        swiglu_mode=mode,
        clamp_limit=3.0,
        glu_alpha=1.5,
        glu_bias=0.5,
    )


def test_dequant_swiglu_quant_by_fixed_scales_and_of_floats() -> None:
    x, bias = torch.randint(-2000, 2000, (6, 16), dtype=torch.int32), torch.randint(-99, 99, (16,), dtype=torch.int32)
    weight, scale, offset = torch.rand(16) / 100, torch.rand(1, 8) / 20 + 0.05, torch.randn(1, 8) * 9
    given = {"weight_scale": weight, "bias": bias, "quant_scale": scale, "quant_offset": offset}
    a, b = ((x + bias).double() * weight.double()).chunk(2, -1)
    y, _ = npu.npu_dequant_swiglu_quant(x.npu(), activate_left=True, **{n: t.npu() for n, t in given.items()})
    near([y], [int8(silu(a) * b / scale.double() + offset.double())])
    half = torch.randn(2, 3, 16).half()
    a, b = half.double().chunk(2, -1)
    near(npu.npu_dequant_swiglu_quant(half.npu(), quant_mode=1), by_row(a * silu(b)))
    with pytest.raises(RuntimeError, match="weight_scale, activation_scale or bias is not emulated"):
        npu.npu_dequant_swiglu_quant(half.npu(), weight_scale=weight.npu(), quant_mode=1)
    with pytest.raises(RuntimeError, match="activate_dim 0 is not emulated"):
        npu.npu_dequant_swiglu_quant(half.npu(), quant_mode=1, activate_dim=0)
