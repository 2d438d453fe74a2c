"""Fused calls that ATen has on every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode.fusion.emit import Emit, Refused
from graphmode.fusion.pattern import tensor_of
from graphmode.program.single_cat import is_dense

aten = torch.ops.aten


def attention(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """softmax(query key^T scale + mask) value, by scaled_dot_product_attention.

    query, key, value: [batch, heads, tokens, width]; mask: what is added to the scores.
    """
    query, key, value, mask = (bound.get(name) for name in ("query", "key", "value", "mask"))
    q, k, v = (tensor_of(n) for n in (query, key, value))
    if q is None or k is None or v is None or not q.dim() == k.dim() == v.dim() == 4:
        raise Refused("attention over other than four dimensions")
    if not q.dtype == k.dtype == v.dtype:
        raise Refused(f"attention of {q.dtype}, {k.dtype} and {v.dtype}")
    if [str(n) for n in k.shape[:3]] != [str(n) for n in v.shape[:3]] or str(q.shape[0]) != str(k.shape[0]):
        raise Refused(f"attention of {list(q.shape)} over {list(k.shape)} and {list(v.shape)}")
    if str(q.shape[1]) != str(k.shape[1]):
        raise Refused(f"{q.shape[1]} heads over {k.shape[1]}")
    _check_mask(tensor_of(mask), q, k)
    made = emit(aten.scaled_dot_product_attention.default, query, key, value, mask, scale=scale_of(bound))
    if not is_dense(made.meta["val"]):  # a product would be
        made = emit(aten.clone.default, made, memory_format=torch.contiguous_format)
    return [made]


def _check_mask(mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> None:
    scores = [*map(str, q.shape[:3]), str(k.shape[2])]
    if mask is None:
        return
    if mask.dtype != q.dtype or mask.dim() != 4:
        raise Refused(f"a mask of {mask.dtype} over {mask.dim()} dimensions for a query of {q.dtype}")
    if any(str(n) not in ("1", s) for n, s in zip(mask.shape, scores, strict=True)):
        raise Refused(f"a mask of {list(mask.shape)} for scores of [{', '.join(scores)}]")


def scale_of(bound: Mapping[str, Any]) -> float:
    """What the scores are multiplied by."""
    if "scale" in bound:
        return float(bound["scale"])
    if not bound["divisor"]:
        raise Refused("scores divided by zero")
    return 1 / float(bound["divisor"])


def matmul_bias(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """x weight + bias, by addmm. x: [rows, k], weight: [k, n], bias: [n]."""
    tensors = [tensor_of(bound[name]) for name in ("x", "weight", "bias")]
    if [None if t is None else t.dim() for t in tensors] != [2, 2, 1]:
        raise Refused("no product of two matrices with one row added")
    if len({t.dtype for t in tensors if t is not None}) != 1:
        raise Refused("a product and a bias of several dtypes")
    return [emit(aten.addmm.default, bound["bias"], bound["x"], bound["weight"])]


TABLE = {"attention": attention, "matmul_bias": matmul_bias}
