"""Fused calls of Ascend NPUs: torch_npu's `npu::` ops. What they take is checked here, what they give by `fuse.py`.

Meaning of arguments: the pages of each op in Ascend's "PyTorch API reference" and op-plugin's schemas. Run over the
emulated runtime; never on an NPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode.fusion import aten
from graphmode.fusion.emit import Emit, Refused
from graphmode.fusion.pattern import tensor_of
from graphmode.program.single_cat import is_dense

_HALF = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALF, torch.float32)
_WIDEST_ROTARY = 896  # elements of a head


def _op(name: str) -> Any:
    packet = getattr(torch.ops.npu, name, None)
    if packet is None:
        raise Refused(f"this torch_npu has no npu::{name}")
    return packet.default


def _tensor(bound: Mapping[str, Any], name: str) -> torch.Tensor:
    found = tensor_of(bound[name])
    assert found is not None  # the pattern binds tensors alone
    return found


def _same_size(a: torch.Tensor, b: torch.Tensor) -> bool:
    return str(a.shape) == str(b.shape) and a.dtype == b.dtype


def _check_float(x: torch.Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise Refused(f"the operator takes no {x.dtype}")


def _check_norm(x: torch.Tensor, weight: torch.Tensor) -> None:
    if weight.dim() != 1 or str(weight.shape[0]) != str(x.shape[-1]):
        raise Refused(f"a norm over {list(x.shape)} with a weight of {list(weight.shape)}")
    if x.dtype not in _FLOATS or weight.dtype not in (x.dtype, torch.float32):
        raise Refused(f"a norm over {x.dtype} with a weight of {weight.dtype}")


def rms_norm(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """x / sqrt(mean(x^2) + eps) * weight. x: [..., n], weight: [n]."""
    _check_norm(_tensor(bound, "x"), _tensor(bound, "weight"))
    made = emit(_op("npu_rms_norm"), bound["x"], bound["weight"], float(bound["eps"]))
    return [emit.item(made, 0)]


def add_rms_norm(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """The norm of a + b, and a + b."""
    a, b, weight = (_tensor(bound, name) for name in ("a", "b", "weight"))
    if not _same_size(a, b):
        raise Refused(f"a sum of {list(a.shape)} and {list(b.shape)}, which are not the same")
    _check_norm(a, weight)
    made = emit(_op("npu_add_rms_norm"), bound["a"], bound["b"], bound["weight"], float(bound["eps"]))
    return [emit.item(made, 0), emit.item(made, 2)]


def rotary(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """x cos + rotate(x) sin, halves of the last dimension rotated. x: [batch, heads, tokens, width]."""
    x, cos, sin = (_tensor(bound, name) for name in ("x", "cos", "sin"))
    width = x.shape[-1]
    _check_float(x)
    if {t.dim() for t in (x, cos, sin)} != {4} or len({t.dtype for t in (x, cos, sin)}) != 1:
        raise Refused("a rotary embedding of other than four dimensions, or of several dtypes")
    if not isinstance(width, int) or width % 2 or width > _WIDEST_ROTARY or not _same_size(cos, sin):
        raise Refused(f"a rotary embedding over {list(x.shape)} by {list(cos.shape)}")
    if any(str(c) not in ("1", str(n)) for c, n in zip(cos.shape, x.shape, strict=True)) or cos.shape[-1] != width:
        raise Refused(f"a rotary embedding over {list(x.shape)} by {list(cos.shape)}")
    given = [bound["x"], bound["cos"], bound["sin"]]
    if is_dense(x) or not is_dense(x.transpose(1, 2)):
        return [emit(_op("npu_rotary_mul"), *given)]
    # Heads that were split from tokens: [batch, tokens, heads, width] in memory, and so must the result lie.
    made = emit(_op("npu_rotary_mul"), *(emit(torch.ops.aten.transpose.int, t, 1, 2) for t in given))
    return [emit(torch.ops.aten.transpose.int, made, 1, 2)]


def swiglu(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """silu(first half) * second half of the last dimension."""
    _check_float(_tensor(bound, "x"))
    return [emit(_op("npu_swiglu"), bound["x"], -1)]


def _geglu(emit: Emit, bound: Mapping[str, Any], left: bool) -> Sequence[fx.Node]:
    _check_float(_tensor(bound, "x"))
    gelu = bound["gelu"]
    approximate = gelu.args[1] if len(gelu.args) > 1 else gelu.kwargs.get("approximate", "none")
    made = emit(_op("npu_geglu"), bound["x"], -1, 1 if approximate == "tanh" else 0, left)
    return [emit.item(made, 0)]


def geglu_left(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """gelu(first half) * second half."""
    return _geglu(emit, bound, left=True)


def geglu_right(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """first half * gelu(second half)."""
    return _geglu(emit, bound, left=False)


def attention(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """Without a mask by npu_fused_infer_attention_score, which reads a cache once; with one as ATen has it."""
    q, k, v = (_tensor(bound, name) for name in ("query", "key", "value"))
    fits = q.dim() == k.dim() == v.dim() == 4 and q.dtype in _HALF and isinstance(q.shape[1], int)
    same = q.dtype == k.dtype == v.dtype and str(k.shape) == str(v.shape) and str(q.shape[:2]) == str(k.shape[:2])
    if "mask" in bound or not fits or not same:
        return aten.attention(emit, bound)
    made = emit(
        _op("npu_fused_infer_attention_score"),
        bound["query"],
        bound["key"],
        bound["value"],
        num_heads=q.shape[1],
        scale=aten.scale_of(bound),
        input_layout="BNSD",
        num_key_value_heads=q.shape[1],
    )
    return [emit.item(made, 0)]


def moe_routing(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """The k largest of softmax(logits), and whose they are. logits: [tokens, experts]."""
    logits = _tensor(bound, "logits")
    _check_float(logits)
    if logits.dim() != 2:
        raise Refused(f"routing over {list(logits.shape)}, where [tokens, experts] is known")
    made = emit(_op("npu_moe_gating_top_k_softmax"), bound["logits"], None, int(bound["k"]))
    experts = emit(torch.ops.aten._to_copy.default, emit.item(made, 1), dtype=torch.int64)
    return [emit.item(made, 0), experts]


def quantise_rows(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """Each row of x as int8, and what it was divided by. x: [..., n]."""
    x = _tensor(bound, "x")
    if x.dtype not in _HALF:
        raise Refused(f"quantisation of {x.dtype}, where float16 and bfloat16 are known")
    made = emit(_op("npu_dynamic_quant"), bound["x"])
    scale = emit(torch.ops.aten.unsqueeze.default, emit.item(made, 1), -1)
    if tensor_of(bound["scale"]).dtype != torch.float32:  # type: ignore[union-attr]
        scale = emit(torch.ops.aten._to_copy.default, scale, dtype=x.dtype)
    return [emit.item(made, 0), scale]


def quant_matmul(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    """x weight by int8, times a scale of each row and of each column. x: [m, k], weight: [k, n]."""
    x, weight, rows, columns = (_tensor(bound, name) for name in ("x", "weight", "row_scale", "column_scale"))
    good = rows.dtype == columns.dtype == torch.float32 and str(rows.shape) == str(torch.Size((x.shape[0], 1)))
    if not good or columns.dim() != 1 or str(columns.shape[0]) != str(weight.shape[1]):
        raise Refused(f"scales of {list(rows.shape)} {rows.dtype} and {list(columns.shape)} {columns.dtype}")
    row = emit(torch.ops.aten.squeeze.dim, bound["row_scale"], 1)
    dtype = bound["product"].meta["val"].dtype
    if dtype not in _HALF:
        raise Refused(f"a product of {dtype}, where float16 and bfloat16 are known")
    return [
        emit(
            _op("npu_quant_matmul"),
            bound["x"],
            bound["weight"],
            bound["column_scale"],
            pertoken_scale=row,
            output_dtype=dtype,
        )
    ]


TABLE = {
    **aten.TABLE,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "rotary": rotary,
    "swiglu": swiglu,
    "geglu_left": geglu_left,
    "geglu_right": geglu_right,
    "attention": attention,
    "moe_routing": moe_routing,
    "quantise_rows": quantise_rows,
    "quant_matmul": quant_matmul,
}
