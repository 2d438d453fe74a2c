"""Fused attention of training, forward, against loops over sequences in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .plain import check, same

npu = torch.ops.npu
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
ALL = 2147483647


def seen(mode: int, rows: int, columns: int, before: int, after: int, mask: Tensor) -> Tensor:
    """What each query may see: true where it may."""
    ahead = torch.arange(columns) - torch.arange(rows).unsqueeze(1)
    behind = ahead - (columns - rows)
    if mode == 0:
        return (ahead <= after) & (ahead >= -before) & ~mask[..., :rows, :columns].bool()
    if mode == 1:
        return ~mask[..., :rows, :columns].bool()
    return {2: ahead <= 0, 3: behind <= 0, 4: (behind <= after) & (behind >= -before)}[mode]


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, allowed: Tensor | None, bias: Tensor | None, sink: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one sequence, [heads, rows, width]: the result, and each softmax's highest score and sum."""
    shared = query.shape[0] // key.shape[0]
    key, value = key.double().repeat_interleave(shared, 0), value.double().repeat_interleave(shared, 0)
    scores = query.double() @ key.transpose(1, 2) * scale
    if bias is not None:
        scores = scores + bias.double()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    highest = scores.amax(-1, True)
    if sink is not None:
        highest = highest.maximum(sink.double().view(-1, 1, 1))
    p = (scores - highest).exp()
    total = p.sum(-1, True)
    if sink is not None:
        total = total + (sink.double().view(-1, 1, 1) - highest).exp()
    return p @ value / total, highest, total


def heads_first(x: Tensor, layout: str, heads: int) -> Tensor:
    if layout == "SBH":
        x = x.transpose(0, 1)
    if layout in ("BSH", "SBH"):
        x = x.unflatten(-1, (heads, -1))
    return x if layout == "BNSD" else x.transpose(1, 2)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """[sequences, heads, rows, width] in the order that is asked for."""
    if layout == "BNSD":
        return x
    x = x.transpose(1, 2)
    if layout in ("BSH", "SBH"):
        x = x.flatten(2)
    return (x.transpose(0, 1) if layout == "SBH" else x).contiguous()


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    layout: str,
    *,
    key_heads: int = 2,
    pse: Tensor | None = None,
    pse_type: int = 1,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    sparse_mode: int = 0,
    before: int = ALL,
    after: int = ALL,
    sink: Tensor | None = None,
) -> tuple[Any, ...]:
    q, k, v = (
        heads_first(query, layout, heads),
        heads_first(key, layout, key_heads),
        heads_first(value, layout, key_heads),
    )
    rows, columns = q.shape[2], k.shape[2]
    found = []
    for i in range(q.shape[0]):
        bias = None if pse is None else pse[i % pse.shape[0]].double() * (scale if pse_type == 1 else 1)
        mask = atten_mask
        if mask is not None and mask.dim() == 4:
            mask = mask[i % mask.shape[0]]
        allowed = None if mask is None else seen(sparse_mode, rows, columns, before, after, mask)
        found.append(attend(q[i], k[i], v[i], scale, allowed, bias, sink))
    out, highest, total = (torch.stack(t) for t in zip(*found, strict=True))
    draws = q.shape[0] * heads * rows * columns
    softmax = [t.float().expand(*t.shape[:-1], 8) for t in (highest, total)]
    return laid_out(out, layout).to(query.dtype), *softmax, query.new_empty(0), 0, 0, draws


def tensors(layout: str, dtype: torch.dtype, rows: int = 5, columns: int = 7) -> list[Tensor]:
    shapes = ((2, 4, rows, 8), (2, 2, columns, 8), (2, 2, columns, 8))
    return [laid_out(torch.randn(shape).to(dtype), layout) for shape in shapes]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD"])
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    check(npu.npu_fusion_attention, plain, *tensors(layout, dtype), 4, layout, scale=0.3)


CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
def test_masks(mode: int) -> None:
    mask = CAUSAL if mode >= 2 else torch.rand(2, 1, 5, 7) < 0.2
    q, k, v = tensors("BNSD", torch.float32)
    given = (q, k, v, 4, "BNSD")

    def first(*args: Any, pre_tockens: int, next_tockens: int, **how: Any) -> Any:
        return plain(*args, before=pre_tockens, after=next_tockens, **how)

    how = {"scale": 0.3, "atten_mask": mask, "sparse_mode": mode, "pre_tockens": 3, "next_tockens": 2}
    check(npu.npu_fusion_attention, first, *given, **how)

    def second(*args: Any, pre_tokens: int, next_tokens: int, **how: Any) -> Any:
        return plain(*args, before=pre_tokens, after=next_tokens, **how)

    how = {"scale": 0.3, "atten_mask": mask, "sparse_mode": mode, "pre_tokens": 3, "next_tokens": 2}
    check(npu.npu_fusion_attention_v2, second, *given, **how)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_bias_before_or_behind_the_scale_and_a_sink(kind: int) -> None:
    q, k, v = tensors("BSND", torch.float32)
    for shape in ((2, 4, 5, 7), (1, 4, 5, 7), (2, 4, 1, 7)):
        check(
            npu.npu_fusion_attention_v2,
            plain,
            *(q, k, v, 4, "BSND"),
            pse=torch.randn(shape),
            pse_type=kind,
            scale=0.3,
            sink=torch.randn(4),
            meta=False,  # its sizes are wrong where heads are behind rows
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["", "TND"])
def test_packed_sequences(dtype: torch.dtype, order: str) -> None:
    q, k, v = torch.randn(9, 4, 8).to(dtype), torch.randn(11, 2, 8).to(dtype), torch.randn(11, 2, 6).to(dtype)
    ends, key_ends = [3, 3, 7, 0], [4, 4, 11, 0]

    def packed(q: Tensor, k: Tensor, v: Tensor, heads: int, layout: str, *_: Any, **how: Any) -> tuple[Any, ...]:
        out, softmax = torch.zeros(9, 4, 6).to(dtype), [torch.zeros(4, 9, 8), torch.zeros(4, 9, 8)]
        for a, b, c, d in ((0, 3, 0, 4), (3, 7, 4, 11)):
            allowed = seen(3, b - a, d - c, ALL, ALL, CAUSAL)
            made = attend(*(t.transpose(0, 1) for t in (q[a:b], k[c:d], v[c:d])), 0.3, allowed, None, None)
            out[a:b] = made[0].transpose(0, 1).to(dtype)
            for t, one in zip(softmax, made[1:], strict=True):
                t[:, a:b] = one.float()
        softmax = [t.transpose(0, 1) if order else t.view(9, 4, 8) for t in softmax]
        return out, *softmax, q.new_empty(0), 0, 0, 4 * (3 * 4 + 4 * 7)

    how = {"scale": 0.3, "atten_mask": CAUSAL, "sparse_mode": 3, "softmax_layout": order}
    check(
        npu.npu_fusion_attention,
        packed,
        q,
        k,
        v,
        4,
        "TND",
        actual_seq_qlen=ends[:3],
        actual_seq_kvlen=key_ends[:3],
        **how,
    )
    trailing = npu.npu_fusion_attention(
        *(t.npu() for t in (q, k, v)),
        4,
        "TND",
        actual_seq_qlen=ends,
        actual_seq_kvlen=key_ends,
        **{**how, "atten_mask": CAUSAL.npu()},
    )
    same(list(trailing[:3]), list(packed(q, k, v, 4, "TND")[:3]))

    def third(*args: Any, **how: Any) -> tuple[Any, ...]:
        return *packed(*args, **how)[:4], torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)

    lengths = {"actual_seq_qlen": torch.tensor(ends[:3]), "actual_seq_kvlen": torch.tensor(key_ends[:3])}
    check(npu.npu_fusion_attention_v3, third, q, k, v, 4, "TND", **lengths, **how)


def test_what_is_not_emulated_says_so() -> None:
    q, k, v = (t.npu() for t in tensors("BNSD", torch.float32))
    op = npu.npu_fusion_attention
    with pytest.raises(RuntimeError, match=r"keep_prob 0\.9 is not emulated"):
        op(q, k, v, 4, "BNSD", keep_prob=0.9)
    with pytest.raises(RuntimeError, match="sparse_mode 5 is not emulated"):
        op(q, k, v, 4, "BNSD", sparse_mode=5)
    with pytest.raises(RuntimeError, match="prefix is not emulated"):
        op(q, k, v, 4, "BNSD", prefix=[1, 1])
    with pytest.raises(RuntimeError, match="pse_type 2 is not emulated"):
        npu.npu_fusion_attention_v2(q, k, v, 4, "BNSD", pse_type=2)
    with pytest.raises(RuntimeError, match="query_rope is not emulated"):
        npu.npu_fusion_attention_v2(q, k, v, 4, "BNSD", query_rope=q, key_rope=k)
    with pytest.raises(RuntimeError, match="actual_seq_qlen and actual_seq_kvlen belong"):
        op(q, k, v, 4, "BNSD", actual_seq_qlen=[5], actual_seq_kvlen=[7])
    with pytest.raises(RuntimeError, match="no input_layout NBSD"):
        op(q, k, v, 4, "NBSD")
    with pytest.raises(RuntimeError, match=r"atten_mask of \[2048, 2048\]"):
        op(q, k, v, 4, "BNSD", atten_mask=CAUSAL[:5, :7].npu(), sparse_mode=3)
