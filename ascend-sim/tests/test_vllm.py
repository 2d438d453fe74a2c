"""What vllm-ascend needs beyond torch_npu: pyACL, its Triton kernels and its own ops. vLLM itself is not needed."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
from ascend_sim import vllm, vllm_triton


@pytest.fixture(autouse=True)
def _installed() -> None:
    vllm.install()


def _slots(starts: list[int], positions: list[int], table: torch.Tensor, ranks: int = 1, rank: int = 0) -> list[int]:
    device = table.device
    slots = torch.full((12,), 99, dtype=torch.int32, device=device)
    kernel = vllm_triton.jit(types.FunctionType(compile("0", "", "eval"), {}, "_compute_slot_mapping_kernel"))
    kernel[(3,)](
        len(positions),
        10,
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(positions, device=device),
        table,
        table.stride(0),
        4,
        slots,
        TOTAL_CP_WORLD_SIZE=ranks,
        TOTAL_CP_RANK=rank,
        CP_KV_CACHE_INTERLEAVE_SIZE=1,
        PAD_ID=-1,
        BLOCK_SIZE=1024,
    )
    return slots.tolist()


def test_a_token_has_the_slot_of_its_request_s_block_and_padding_none() -> None:
    table = torch.tensor([[7, 3], [5, 0], [9, 9]], dtype=torch.int32, device="npu")
    found = _slots([0, 3, 5, 5], [2, 3, 4, 0, 1], table)
    assert found == [7 * 4 + 2, 7 * 4 + 3, 3 * 4, 5 * 4, 5 * 4 + 1, -1, -1, -1, -1, -1, 99, 99]


def test_tokens_behind_the_last_request_keep_what_was_there() -> None:
    table = torch.tensor([[7, 3], [5, 0]], dtype=torch.int32, device="npu")
    assert _slots([0, 1, 2], [0, 0, 0, 0], table)[:5] == [28, 20, 99, 99, -1]


def test_tokens_of_other_ranks_have_no_slot() -> None:
    table = torch.tensor([[7, 3], [5, 0]], dtype=torch.int32, device="npu")
    # A block of two ranks holds eight positions, every other one here.
    assert _slots([0, 3, 4], [0, 1, 8, 3], table, ranks=2, rank=1)[:4] == [-1, 28, -1, 21]


def test_a_kernel_without_a_meaning_fails_with_its_name_when_launched() -> None:
    def some_kernel() -> None: ...

    with pytest.raises(NotImplementedError, match="some_kernel"):
        vllm_triton.jit(some_kernel)[(1,)]


def test_the_placeholder_makes_kernels() -> None:
    class TritonPlaceholder:
        def __init__(self) -> None:
            self.jit = None

    importing = types.ModuleType("importing")
    importing.TritonPlaceholder = TritonPlaceholder  # type: ignore[attr-defined]
    vllm_triton.take_over(importing)
    assert isinstance(TritonPlaceholder().jit(_slots), vllm_triton.Kernel)  # type: ignore[misc]
    assert isinstance(TritonPlaceholder().jit(do_not_specialize=["n"])(_slots), vllm_triton.Kernel)  # type: ignore[misc]


def test_acl_copies_between_host_and_device() -> None:
    rt = importlib.import_module("acl.rt")
    there, code = rt.malloc(16)
    assert code == 0
    given, found = torch.arange(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    assert rt.memcpy(there, 16, given.data_ptr(), 16, 1) == 0
    assert rt.memcpy(found.data_ptr(), 16, there, 16, 2) == 0
    assert rt.memcpy(found.data_ptr(), 8, there, 16, 2) != 0
    assert rt.free(there) == 0
    assert found.tolist() == [0, 1, 2, 3]


def _ops() -> types.ModuleType:
    """vllm-ascend's module of its own ops, found as it finds it."""
    sys.modules.setdefault("vllm_ascend", types.ModuleType("vllm_ascend"))
    sys.modules["vllm_ascend"].__path__ = []
    importlib.import_module("vllm_ascend.vllm_ascend_C")
    return torch.ops._C_ascend


def test_gating_takes_the_best_experts_of_the_best_groups() -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0, 2.0, 9.0, -9.0, 0.0, 0.0]], device="npu")
    # Groups of two by the sum of their two best: (2, 3) and (0, 1); 4 is alone with the worst one.
    weights, experts, _ = _ops().moe_gating_top_k(logits, 3, 2, 4, 1, 1, 1, False, 2.0, 0.0, None)
    assert experts.tolist() == [[0, 2, 3]] and experts.dtype == torch.int32
    picked = torch.tensor([3.0, 2.0, 2.0]).sigmoid()
    torch.testing.assert_close(weights.cpu()[0], 2 * picked / picked.sum())


def test_a_bias_counts_for_the_choice_alone() -> None:
    logits, bias = torch.zeros(1, 4, device="npu"), torch.tensor([0.0, 0.0, 0.0, 1.0], device="npu")
    weights, experts, scores = _ops().moe_gating_top_k(logits, 2, 1, 1, 0, 0, 0, True, 1.0, 1e-20, bias)
    assert experts.tolist() == [[3, 0]]
    assert weights.tolist() == [[0.25, 0.25]] and scores.shape == (1, 4)


def test_routing_sorts_rows_by_expert_and_says_where_each_went() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0]], device="npu")
    experts = torch.tensor([[2, 0], [1, 2], [0, 2]], dtype=torch.int32, device="npu")
    sorted_rows, place, tokens, _ = _ops().npu_moe_init_routing_custom(
        rows, experts, expert_num=3, expert_tokens_num_type=1, quant_mode=-1, active_expert_range=[0, 3]
    )
    assert sorted_rows.flatten().tolist() == [0, 2, 1, 0, 1, 2]
    assert place.tolist() == [3, 0, 2, 4, 1, 5]
    assert tokens.tolist() == [2, 1, 3]


def test_rows_of_other_ranks_experts_go_last_and_nowhere() -> None:
    rows = torch.tensor([[0.0], [1.0]], device="npu")
    experts = torch.tensor([[0, 2], [3, 2]], dtype=torch.int32, device="npu")
    sorted_rows, place, tokens, _ = _ops().npu_moe_init_routing_custom(
        rows, experts, expert_num=4, expert_tokens_num_type=1, quant_mode=-1, active_expert_range=[2, 4]
    )
    assert sorted_rows.flatten().tolist()[:3] == [0, 1, 1]
    assert place.tolist() == [-1, 0, 2, 1]
    assert tokens.tolist() == [2, 1]


def test_routing_quantises_rows_and_moves_scales() -> None:
    rows = torch.tensor([[1.0, -4.0], [0.5, 0.25]]).half().npu()
    experts = torch.tensor([[1, 0], [0, 1]], dtype=torch.int32, device="npu")
    how = {"expert_num": 2, "expert_tokens_num_type": 1, "active_expert_range": [0, 2]}
    quantised, _, _, scales = _ops().npu_moe_init_routing_custom(rows, experts, quant_mode=1, **how)
    assert quantised.tolist() == [[32, -127], [127, 64], [32, -127], [127, 64]]
    torch.testing.assert_close(scales.cpu() * 127, torch.tensor([4.0, 0.5, 4.0, 0.5]))
    scale = torch.tensor([2.0, 3.0], device="npu")
    assert _ops().npu_moe_init_routing_custom(rows, experts, scale=scale, quant_mode=-1, **how)[3].tolist() == [
        2,
        3,
        2,
        3,
    ]
    with pytest.raises(NotImplementedError, match="smooths"):
        _ops().npu_moe_init_routing_custom(rows, experts, scale=scale, quant_mode=1, **how)


@pytest.mark.parametrize("limit", [0.0, 2.0])
@pytest.mark.parametrize("mode", [0, 1])
def test_dequant_swiglu_quant_has_bounds_in_one_of_its_modes(limit: float, mode: int) -> None:
    x, weight = torch.randint(-100, 100, (4, 16), dtype=torch.int32), torch.rand(16) / 10
    token = torch.rand(4, 1)
    gate, up = (x * weight * token).chunk(2, -1)
    if mode == 1 and limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    wanted = torch.nn.functional.silu(gate) * up
    given = {"weight_scale": weight.npu(), "activation_scale": token.npu()}
    y, scale = _ops().npu_dequant_swiglu_quant(
        x.npu(), **given, quant_mode=1, swiglu_mode=mode, clamp_limit=limit, activate_left=True
    )
    torch.testing.assert_close(scale.cpu(), wanted.abs().amax(-1) / 127)
    assert (y.cpu() * scale.cpu().unsqueeze(1) - wanted).abs().max() <= scale.max().item() * 0.51


def test_grouped_swiglu_is_torch_npu_s() -> None:
    x, weight = torch.randint(-9, 9, (3, 16), dtype=torch.int8), torch.randint(-9, 9, (2, 16, 8), dtype=torch.int8)
    scale, token, ends = torch.rand(2, 8), torch.rand(3), torch.tensor([1, 3])
    on = [t.npu() for t in (x, weight, scale, token, ends)]
    found = _ops().grouped_matmul_swiglu_quant_weight_nz(*on)
    wanted = torch.ops.npu.npu_grouped_matmul_swiglu_quant(on[0], on[1], on[4], on[2], on[3])
    assert torch.equal(found[0].cpu(), wanted[0].cpu()) and torch.equal(found[1].cpu(), wanted[1].cpu())
    with pytest.raises(NotImplementedError, match="swiglu_limit"):
        _ops().grouped_matmul_swiglu_quant_weight_nz(*on, swiglu_limit=7.0)
