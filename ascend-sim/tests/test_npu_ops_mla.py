"""What comes before latent attention, against its definitions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .plain import check, same

npu = torch.ops.npu
HALVES = [torch.float16, torch.bfloat16]
KV, ROPE, SIZE = 64, 32, 4  # widths of a compressed row and of its part with the position; rows of a block


def normed(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    return x.double() / (x.double().pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * gamma.double()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs are taken apart into halves, then turned."""
    a, b = x.double()[..., ::2], x.double()[..., 1::2]
    return torch.cat((a, b), -1) * cos.double() + torch.cat((-b, a), -1) * sin.double()


def put(cache: Tensor, row: Tensor, slot: int, nz: bool) -> None:
    """One row into a cache of blocks; negative slots are none."""
    if slot < 0:
        return
    block, place = divmod(slot, SIZE)
    if cache.dtype == torch.int8:
        row = row.round().clamp(-128, 127)
    if not nz:
        cache[block, place, 0] = row.to(cache.dtype)
        return
    last = 32 if cache.dtype == torch.int8 else 16
    cache[block].view(-1, SIZE, last)[:, place] = row.to(cache.dtype).view(-1, last)


def slots_of(mode: str, index: Tensor, batch: int, length: int) -> list[int]:
    if "BLK" not in mode:
        return list(index.flatten().tolist())
    firsts = index.view(batch, -1).tolist()
    return [firsts[b][t // SIZE] + t % SIZE for b in range(batch) for t in range(length)]


def kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    rope_cache: Tensor,
    cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    epsilon: float,
    cache_mode: str,
    is_output_kv: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compressed = normed(kv[..., :KV], gamma, epsilon)
    rope = turned(kv[..., KV:], cos, sin)
    batch, _, length, _ = kv.shape
    for values, to, scale in ((rope, rope_cache, k_rope_scale), (compressed, cache, c_kv_scale)):
        rows = values.flatten(0, 2) if scale is None else values.flatten(0, 2) * scale.double()
        for row, slot in zip(rows, slots_of(cache_mode, index, batch, length), strict=True):
            put(to, row, slot, "NZ" in cache_mode)
    return rope_cache, cache, rope.to(kv.dtype), compressed.to(kv.dtype)


def latent(dtype: torch.dtype, batch: int, length: int) -> tuple[Tensor, ...]:
    kv = torch.randn(batch, 1, length, KV + ROPE, dtype=dtype)
    cos, sin = torch.rand(batch, 1, length, ROPE, dtype=dtype), torch.rand(batch, 1, length, ROPE, dtype=dtype)
    return kv, torch.rand(KV, dtype=dtype), cos, sin


def caches(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (torch.randn(6, SIZE, 1, ROPE) * 9).to(dtype), (torch.randn(6, SIZE, 1, KV) * 9).to(dtype)


BY_TOKEN = torch.tensor([7, 2, -1, 23, 0, 12])
BY_BLOCK = torch.tensor([8, 20, 4, 12])
HOW: dict[str, Any] = {"epsilon": 1e-6, "is_output_kv": True}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mode", ["PA", "PA_BNSD", "PA_NZ"])
@pytest.mark.parametrize("batch", [6, 2])
def test_latent_rows_go_to_their_slots(dtype: torch.dtype, mode: str, batch: int) -> None:
    given = (*latent(dtype, batch, 6 // batch), BY_TOKEN, *caches(dtype))
    check(npu.npu_kv_rmsnorm_rope_cache, kv_rmsnorm_rope_cache, *given, cache_mode=mode, **HOW)
    check(
        npu.npu_kv_rmsnorm_rope_cache_v2,
        lambda *a, **k: kv_rmsnorm_rope_cache(*a, **k)[2:],
        *given,
        cache_mode=mode,
        **HOW,
    )


@pytest.mark.parametrize("mode", ["PA_BLK_BNSD", "PA_BLK_NZ"])
def test_latent_rows_go_to_blocks(mode: str) -> None:
    given = (*latent(torch.bfloat16, 2, 6), BY_BLOCK, *caches(torch.bfloat16))
    check(npu.npu_kv_rmsnorm_rope_cache, kv_rmsnorm_rope_cache, *given, cache_mode=mode, **HOW)


@pytest.mark.parametrize("mode", ["PA", "PA_NZ"])
def test_latent_rows_are_quantised(mode: str) -> None:
    scales = {"k_rope_scale": torch.rand(ROPE) * 30, "c_kv_scale": torch.rand(KV) * 30}
    given = (*latent(torch.bfloat16, 6, 1), BY_TOKEN, *caches(torch.int8))
    check(
        npu.npu_kv_rmsnorm_rope_cache, kv_rmsnorm_rope_cache, *given, **scales, cache_mode=mode, tolerance=2e-2, **HOW
    )


def test_latent_rows_go_to_their_sequence_and_no_results_are_made() -> None:
    kv, gamma, cos, sin = latent(torch.bfloat16, 2, 3)
    rope_cache, cache = torch.zeros(2, 1, 8, ROPE).bfloat16(), torch.zeros(2, 1, 8, KV).bfloat16()
    index = torch.tensor([[4, 2, 7], [0, -1, 3]])
    there = (rope_cache.npu(), cache.npu())
    found = npu.npu_kv_rmsnorm_rope_cache(
        *(t.npu() for t in (kv, gamma, cos, sin, index)), *there, cache_mode="Norm", epsilon=1e-5
    )
    for row, where in enumerate(index.tolist()):
        for token, place in enumerate(where):
            if place >= 0:
                rope_cache[row, 0, place] = turned(kv[row, 0, token, KV:], cos[row, 0, token], sin[row, 0, token])
                cache[row, 0, place] = normed(kv[row, 0, token, :KV], gamma, 1e-5)
    same(list(there), [rope_cache, cache])
    assert found[0].data_ptr() == there[0].data_ptr() and found[1].data_ptr() == there[1].data_ptr()
    assert found[2].shape == (2, 1, 3, ROPE) and found[3].shape == (2, 1, 3, KV)


def test_latent_rows_that_do_not_fit() -> None:
    kv, gamma, cos, sin = (t.npu() for t in latent(torch.bfloat16, 6, 1))
    rope_cache, cache = (t.npu() for t in caches(torch.bfloat16))
    index, op = BY_TOKEN.npu(), npu.npu_kv_rmsnorm_rope_cache
    with pytest.raises(RuntimeError, match="no cache_mode BSND"):
        op(kv, gamma, cos, sin, index, rope_cache, cache, cache_mode="BSND")
    with pytest.raises(RuntimeError, match="c_kv_offset is not emulated"):
        op(kv, gamma, cos, sin, index, rope_cache, cache, cache_mode="PA", c_kv_offset=gamma)
    with pytest.raises(RuntimeError, match="go together"):
        op(kv, gamma, cos, sin, index, rope_cache, cache, cache_mode="PA", c_kv_scale=gamma)
    with pytest.raises(RuntimeError, match="does not hold rows of 32"):
        op(kv, gamma, cos, sin, index, cache, cache, cache_mode="PA")
    with pytest.raises(RuntimeError, match="index"):
        op(kv, gamma, cos, sin, index[:5], rope_cache, cache, cache_mode="PA")


HIDDEN, Q, HEADS, WIDTH = 48, 40, 3, 24


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def mla_prolog(
    x: Tensor,
    dq: Tensor,
    uq: Tensor,
    uk: Tensor,
    dkv: Tensor,
    gamma_q: Tensor,
    gamma_kv: Tensor,
    sin: Tensor,
    cos: Tensor,
    kv_cache: Tensor,
    rope_cache: Tensor,
    slots: list[int],
    *,
    nz: bool = False,
    epsilons: tuple[float, float] = (1e-5, 1e-5),
    factors: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, its part with the position, and the norm inside it; writes the caches. Products are rounded."""
    norm = rounded(normed(rounded(x.double() @ dq.double()), gamma_q, epsilons[0]) * factors[0])
    up = rounded(norm @ uq.double()).unflatten(-1, (HEADS, -1))
    query = torch.einsum("...nd,ndl->...nl", up[..., :WIDTH], uk.double())
    query_rope = turned(up[..., WIDTH:], cos.unsqueeze(-2), sin.unsqueeze(-2))
    both = x.double() @ dkv.double()
    compressed, rope = normed(both[..., :KV], gamma_kv, epsilons[1]) * factors[1], turned(both[..., KV:], cos, sin)
    for values, cache in ((compressed, kv_cache), (rope, rope_cache)):
        for row, slot in zip(values.flatten(0, -2), slots, strict=True):
            put(cache, row, slot, nz)
    return query.bfloat16(), query_rope.bfloat16(), norm.bfloat16()


def to_prolog(*tokens: int) -> tuple[Tensor, ...]:
    shapes = [(*tokens, HIDDEN), (HIDDEN, Q), (Q, HEADS * (WIDTH + ROPE)), (HEADS, WIDTH, KV), (HIDDEN, KV + ROPE)]
    weights = [torch.randn(shape) / shape[-2] ** 0.5 for shape in shapes]
    return (
        *(w.bfloat16() for w in weights),
        *(torch.rand(n).bfloat16() for n in (Q, KV)),
        *(torch.rand(*tokens, ROPE).bfloat16() for _ in range(2)),
    )


@pytest.mark.parametrize("tokens", [(6,), (2, 3)])
@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_mla_prolog(tokens: tuple[int, ...], mode: str) -> None:
    rope_cache, cache = caches(torch.bfloat16)
    index = BY_TOKEN.view(tokens)

    def first(*args: Any, rmsnorm_epsilon_cq: float, **_: Any) -> tuple[Tensor, ...]:
        *rest, index, kv, kr = args
        slots = index.flatten().tolist()
        query, query_rope, _ = mla_prolog(*rest, kv, kr, slots, nz=mode == "PA_NZ", epsilons=(rmsnorm_epsilon_cq, 1e-5))
        return query, query_rope, kv, kr

    given = (*to_prolog(*tokens), index, cache, rope_cache)
    how = {"rmsnorm_epsilon_cq": 1e-3, "cache_mode": mode}
    check(npu.npu_mla_prolog, first, *given, **how)
    found = npu.npu_mla_prolog_v2(*(t.npu() for t in given), **how)
    kv, kr = cache.clone(), rope_cache.clone()
    same(list(found[:4]), list(first(*given[:-2], kv, kr, **how)))


@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ", "TND", "BSND"])
def test_mla_prolog_that_gives_its_norm_with_factors(mode: str) -> None:
    tokens = (2, 3) if mode == "BSND" else (6,)
    paged = mode.startswith("PA")
    rope_cache, cache = caches(torch.bfloat16)
    if not paged:
        cache, rope_cache = torch.zeros(*tokens, 1, KV).bfloat16(), torch.zeros(*tokens, 1, ROPE).bfloat16()
    given = to_prolog(*tokens)
    there = (cache.npu(), rope_cache.npu())
    found = npu.npu_mla_prolog_v3(
        *(t.npu() for t in given),
        *there,
        cache_index=BY_TOKEN.npu() if paged else None,
        cache_mode=mode,
        query_norm_flag=True,
        qc_qr_scale=1.5,
        kc_scale=0.5,
    )
    blocks = (cache, rope_cache) if paged else (torch.zeros(2, SIZE, 1, KV), torch.zeros(2, SIZE, 1, ROPE))
    blocks = tuple(b.bfloat16() for b in blocks)
    slots = BY_TOKEN.tolist() if paged else list(range(6))
    wanted = mla_prolog(*given, *blocks, slots, nz=mode == "PA_NZ", factors=(1.5, 0.5))
    same([found[0], found[1], found[3]], list(wanted))
    for one, plain in zip(there, blocks, strict=True):
        same(one, plain if paged else plain.flatten(0, 1)[:6].view(one.shape))


def test_mla_prolog_that_quantises_is_refused() -> None:
    rope_cache, cache = caches(torch.bfloat16)
    given = [t.npu() for t in (*to_prolog(6), BY_TOKEN, cache, rope_cache)]
    with pytest.raises(RuntimeError, match="quant_scale_ckv is not emulated"):
        npu.npu_mla_prolog_v2(*given, quant_scale_ckv=torch.ones(1, KV).npu())
    with pytest.raises(RuntimeError, match="cache_mode BSND is not emulated"):
        npu.npu_mla_prolog(*given, cache_mode="BSND")
    with pytest.raises(RuntimeError, match="weight_quant_mode is not emulated"):
        npu.npu_mla_prolog_v3(*given[:-3], *given[-2:], cache_index=given[-3], weight_quant_mode=1)
    with pytest.raises(RuntimeError, match="caches"):
        npu.npu_mla_prolog(*given[:-1], given[-2])
