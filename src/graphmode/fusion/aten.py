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
    q, m = tensor_of(query), tensor_of(mask)
    if q is None or q.dim() != 4:
        raise Refused(f"attention over {0 if q is None else q.dim()} dimensions, where 4 are known")
    if m is not None and m.dtype != q.dtype:
        raise Refused(f"a mask of {m.dtype} for a query of {q.dtype}")
    scale = float(bound["scale"]) if "scale" in bound else 1 / float(bound["divisor"])
    made = emit(aten.scaled_dot_product_attention.default, query, key, value, mask, scale=scale)
    if not is_dense(made.meta["val"]):  # a product would be
        made = emit(aten.clone.default, made, memory_format=torch.contiguous_format)
    return [made]


def matmul_bias(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """x weight + bias, by addmm. x: [rows, k], weight: [k, n], bias: [n]."""
    tensors = [tensor_of(bound[name]) for name in ("x", "weight", "bias")]
    if [None if t is None else t.dim() for t in tensors] != [2, 2, 1]:
        raise Refused("no product of two matrices with one row added")
    return [emit(aten.addmm.default, bound["bias"], bound["x"], bound["weight"])]


TABLE = {"attention": attention, "matmul_bias": matmul_bias}
