"""Rotary embeddings against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from torch import Tensor

from .plain import check, same, tasks

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
npu = torch.ops.npu


def turn(x: Tensor, cos: Tensor, sin: Tensor, mode: str = "half") -> Tensor:
    x, cos, sin = x.double(), cos.double(), sin.double()
    if mode == "half":
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-b, a), -1) * sin
    turned = torch.empty_like(x)
    turned[..., ::2], turned[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return x * cos + turned * sin


def rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, mode: str = "half") -> Tensor:
    return turn(x, cos, sin, mode).to(x.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul(dtype: torch.dtype, mode: str) -> None:
    x = torch.randn(2, 3, 4, 8, dtype=dtype)
    cos, sin = torch.rand(1, 3, 1, 8, dtype=dtype), torch.rand(1, 3, 1, 8, dtype=dtype)
    check(npu.npu_rotary_mul, rotary_mul, x, cos, sin, mode)
    check(npu.npu_rotary_mul, rotary_mul, x.transpose(1, 2), cos.transpose(1, 2), sin.transpose(1, 2), mode)
    check(npu.npu_rotary_mul, rotary_mul, x[0], cos[0], sin[0], mode)


def test_rotary_mul_by_a_matrix() -> None:
    x, cos, sin, matrix = torch.randn(2, 3, 4, 8), torch.rand(1, 3, 1, 8), torch.rand(1, 3, 1, 8), torch.randn(8, 8)

    def plain(x: Tensor, cos: Tensor, sin: Tensor, mode: str, rotate: Tensor) -> Tensor:
        return (x.double() * cos.double() + x.double() @ rotate.double() * sin.double()).float()

    check(npu.npu_rotary_mul, plain, x, cos, sin, "half", matrix)


def test_rotary_mul_that_does_not_fit() -> None:
    x = torch.ones(2, 3, 4, 8, device="npu")
    with pytest.raises(RuntimeError, match="npu_rotary_mul: the cosines"):
        npu.npu_rotary_mul(x[:1], x, x)
    with pytest.raises(RuntimeError, match="rotary_mode='quarter' is not emulated"):
        npu.npu_rotary_mul(x, x, x, "quarter")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [8, 4])
def test_apply_rotary_pos_emb_overwrites_what_it_gets(dtype: torch.dtype, width: int) -> None:
    query, key = torch.randn(2, 3, 4, 8, dtype=dtype), torch.randn(2, 3, 2, 8, dtype=dtype)
    cos, sin = torch.rand(2, 3, 1, width, dtype=dtype), torch.rand(2, 3, 1, width, dtype=dtype)

    def plain(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str, mode: str) -> tuple[Tensor, Tensor]:
        for t in (query, key):
            t[..., :width] = turn(t[..., :width], cos, sin, mode).to(t.dtype)
        return query, key

    for mode in ("half", "interleave"):
        check(npu.npu_apply_rotary_pos_emb, plain, query, key, cos, sin, "BSND", mode)
    check(npu.npu_apply_rotary_pos_emb, plain, query[0], key[0], cos[0], sin[0], "TND", "half")
    on_npu = query.npu()
    assert npu.npu_apply_rotary_pos_emb(on_npu, key.npu(), cos.npu(), sin.npu())[0].data_ptr() == on_npu.data_ptr()


def test_apply_rotary_pos_emb_that_does_not_fit() -> None:
    x = torch.ones(2, 3, 4, 8, device="npu")
    with pytest.raises(RuntimeError, match="layout TND has 3 dimensions"):
        npu.npu_apply_rotary_pos_emb(x, x, x, x, "TND")
    with pytest.raises(RuntimeError, match="no layout BSH"):
        npu.npu_apply_rotary_pos_emb(x, x, x, x, "BSH")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("neox", [True, False])
def test_rotary_embedding_of_positions(dtype: torch.dtype, neox: bool) -> None:
    positions = torch.tensor([3, 0, 7])
    query, key = torch.randn(3, 4 * 8, dtype=dtype), torch.randn(3, 2 * 8, dtype=dtype)
    cache = torch.rand(10, 8, dtype=dtype)

    def plain(positions: Tensor, query: Tensor, key: Tensor, size: int, cache: Tensor, neox: bool) -> None:
        cos, sin = (half[positions].unsqueeze(1) for half in (cache[:, :4], cache[:, 4:]))
        if neox:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        else:
            cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        for t in (query, key):
            t.copy_(turn(t.view(3, -1, size), cos, sin, "half" if neox else "interleave").view_as(t))

    check(torch_npu._npu_rotary_embedding, plain, positions, query, key, 8, cache, neox, meta=False)


def test_rotary_embedding_of_a_strided_query() -> None:
    qkv, cache = torch.randn(3, 48), torch.rand(10, 8)
    on_npu, positions = qkv.npu(), torch.tensor([1, 2, 3])
    before = tasks()
    torch_npu._npu_rotary_embedding(positions.npu(), on_npu[:, :32], on_npu[:, 32:40], 8, cache.npu(), True)
    assert tasks() == before + 1
    cos, sin = (torch.cat((c, c), -1)[positions].unsqueeze(1) for c in (cache[:, :4], cache[:, 4:]))
    same(on_npu[:, :40], turn(qkv[:, :40].view(3, 5, 8), cos, sin).view(3, 40).float())
    same(on_npu[:, 40:], qkv[:, 40:])


@pytest.mark.parametrize("dtype", FLOATS)
def test_interleave_rope_turns_pairs_that_it_takes_apart(dtype: torch.dtype) -> None:
    x, cos, sin = (torch.rand(2, n, 3, 8, dtype=dtype) for n in (4, 1, 1))

    def plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return turn(torch.cat((x[..., ::2], x[..., 1::2]), -1), cos, sin).to(x.dtype)

    check(npu.npu_interleave_rope, plain, x, cos, sin)
