"""Stands in for `vllm_ascend.vllm_ascend_C`: those of vllm-ascend's own ops that its plain paths call, out of ATen's.

A build without CANN (COMPILE_CUSTOM_KERNELS=0) has no such module, and Dynamo stops where it can't be imported. What is
not here is an AttributeError with the op's name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_ops: dict[str, Callable[..., object]] = {}

# vllm-ascend gives these a meta kernel, which needs the op. Nobody calls them without LoRA or a split vocabulary.
_NAMES_ONLY = (
    "get_masked_input_and_mask(Tensor input, int org_vocab_start_index, int org_vocab_end_index, "
    "int num_org_vocab_padding, int added_vocab_start_index, int added_vocab_end_index) -> (Tensor, Tensor)",
    "bgmv_expand(Tensor! x, Tensor! weight, Tensor! indices, Tensor! y, int slice_offset, int slice_size) -> Tensor",
    "sgmv_expand(Tensor! x, Tensor! weight, Tensor! lora_indices, Tensor! seq_len, Tensor! y, "
    "int slice_offset, int slice_size) -> Tensor",
)


@cache
def define() -> torch.library.Library:
    """Defines the ops, as importing the real module does."""
    library = torch.library.Library("_C_ascend", "DEF")  # type: ignore[no-untyped-call]
    for schema in _NAMES_ONLY:
        library.define(schema)  # type: ignore[no-untyped-call]
    for schema, function in _ops.items():
        # By alias: a kernel that the emulation has for the device itself goes before it.
        name = library.define(schema)  # type: ignore[no-untyped-call]
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def _op(schema: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def register(function: Callable[..., object]) -> Callable[..., object]:
        _ops[schema] = function
        return function

    return register


@_op(
    "npu_add_rms_norm_bias(Tensor x1, Tensor x2, Tensor gamma, Tensor? beta=None, float epsilon=1e-6) "
    "-> (Tensor y, Tensor rstd, Tensor x)"
)
def add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """torch_npu's op, and a bias."""
    y, rstd, x = torch.ops.npu.npu_add_rms_norm(x1, x2, gamma, epsilon)
    return y if beta is None else y + beta, rstd, x


@_op(
    "moe_gating_top_k(Tensor x, int k, int k_group, int group_count, int group_select_mode, int renorm, "
    "int norm_type, bool out_flag, float routed_scaling_factor, float eps, Tensor? bias_opt=None) "
    "-> (Tensor, Tensor, Tensor)"
)
def moe_gating_top_k(
    x: Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    bias_opt: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and numbers of each token's k experts, and all scores; the bias counts for the choice alone."""
    scores = x.float().sigmoid() if norm_type == 1 else x.float().softmax(-1)
    choice = scores if bias_opt is None else scores + bias_opt.float()
    if group_count > 1:
        groups = choice.view(*choice.shape[:-1], group_count, -1)
        best = groups.topk(2, -1).values.sum(-1) if group_select_mode == 1 else groups.amax(-1)
        kept = torch.zeros_like(best).scatter_(-1, best.topk(k_group, -1).indices, 1.0)
        choice = groups.masked_fill((kept == 0).unsqueeze(-1), float("-inf")).flatten(-2)
    experts = choice.sort(dim=-1, descending=True, stable=True).indices[..., :k]  # of equals the first, as on a device
    weights = scores.gather(-1, experts)
    if norm_type == 1 or renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    weights = (weights * routed_scaling_factor).to(x.dtype)
    return weights, experts.to(torch.int32), scores if out_flag else scores.new_empty(0)


@_op(
    "npu_moe_init_routing_custom(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, "
    "int expert_tokens_num_type=0, bool expert_tokens_num_flag=False, int quant_mode=0, "
    "int[2] active_expert_range=[], int row_idx_type=0) -> (Tensor, Tensor, Tensor, Tensor)"
)
def moe_init_routing(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = 0,
    active_expert_range: tuple[int, ...] = (),
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows by their experts; where each row went (or, row_idx_type 1, came from); how many tokens an expert has.

    Rows are quantised by quant_mode 1, and the last result is the scale of each; without, it is what the scale says.
    """
    if quant_mode not in (-1, 1) or (quant_mode == 1 and scale is not None) or drop_pad_mode != 0:
        raise NotImplementedError("npu_moe_init_routing_custom that smooths, quantises by fixed scales, drops or pads")
    first, end = active_expert_range or (0, expert_num)
    count, flat = expert_idx.shape[-1], expert_idx.flatten()
    here = (flat >= first) & (flat < end)
    order = torch.where(here, flat, expert_num).sort(stable=True).indices  # other ranks' rows are last
    rows = x.index_select(0, order // count)
    if row_idx_type == 0:
        place = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
        where = torch.where(here, place, -1)
    else:
        where = torch.where(here[order], order, -1)
    experts = torch.arange(first, end, device=x.device)
    tokens = (flat.unsqueeze(0) == experts.unsqueeze(1)).sum(1)
    if expert_tokens_num_type == 0:
        tokens = tokens.cumsum(0)
    if quant_mode == 1:
        rows, scales = torch.ops.npu.npu_dynamic_quant(rows)
    else:
        scales = x.new_empty(0, dtype=torch.float32) if scale is None else scale.index_select(0, order // count)
    return rows, where.to(torch.int32), tokens, scales


@_op(
    "grouped_matmul_swiglu_quant_weight_nz(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, "
    "Tensor group_list, *, Tensor? bias=None, Tensor? offset=None, float swiglu_limit=0.0) "
    "-> (Tensor output, Tensor output_scale, Tensor output_offset)"
)
def grouped_matmul_swiglu_quant(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    group_list: Tensor,
    *,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    swiglu_limit: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch_npu's op, its arguments in another order."""
    if swiglu_limit != 0:
        raise NotImplementedError("grouped_matmul_swiglu_quant_weight_nz with a swiglu_limit")
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.npu.npu_grouped_matmul_swiglu_quant(
        x, weight, group_list, weight_scale, x_scale, bias=bias, offset=offset
    )
    return found


@_op(
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
    "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
    "bool activate_left=True, int quant_mode=0, int swiglu_mode=0, float clamp_limit=0.0, float glu_alpha=1.0, "
    "float glu_bias=0.0) -> (Tensor y, Tensor scale)"
)
def dequant_swiglu_quant(
    x: Tensor,
    *,
    activate_left: bool = True,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 0.0,
    glu_alpha: float = 1.0,
    glu_bias: float = 0.0,
    **scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """torch_npu's op, but for swiglu_mode 1: halves there, too, and no bounds where the limit is 0.

    By vllm-ascend's test_dequant_swiglu_quant.py.
    """
    how: dict[str, float] = {}
    if swiglu_mode == 1:
        limit = clamp_limit or torch.finfo(torch.float32).max
        how = {"swiglu_mode": 2, "clamp_limit": limit, "glu_alpha": glu_alpha, "glu_bias": glu_bias}
    found: tuple[Tensor, Tensor] = torch.ops.npu.npu_dequant_swiglu_quant(
        x, **scales, activate_left=activate_left, quant_mode=quant_mode, **how
    )
    return found
