"""Routing to experts and back against loops over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from .plain import check, same

npu = torch.ops.npu
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def best(row: Tensor, k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda i: (-row[i].item(), i))[:k]


@pytest.mark.parametrize("dtype", FLOATS)
def test_gating_by_softmax(dtype: torch.dtype) -> None:
    x = torch.randn(5, 8, dtype=dtype)
    finished = torch.tensor([False, True, False, False, False])

    def plain(x: Tensor, finished: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        p = x.double().softmax(-1)
        chosen = torch.tensor([best(row, k) for row in p], dtype=torch.int32)
        weights = p.gather(1, chosen.long()).to(x.dtype)
        if finished is not None:
            chosen[finished] = 8
        return weights, chosen, torch.tensor([[j * 5 + i for j in range(k)] for i in range(5)], dtype=torch.int32)

    check(npu.npu_moe_gating_top_k_softmax, plain, x, None, 3)
    check(npu.npu_moe_gating_top_k_softmax, plain, x, finished, 2)

    def second(x: Tensor, k: int, renorm: int, output_softmax: bool) -> tuple[Tensor, Tensor, Tensor]:
        weights, chosen, _ = plain(x, None, k)
        if renorm:
            weights = x.double().gather(1, chosen.long()).softmax(-1).to(x.dtype)
        return weights, chosen, x.double().softmax(-1).float() if output_softmax else torch.empty(0)

    check(npu.npu_moe_gating_top_k_softmax_v2, second, x, k=3, renorm=1, output_softmax=False)
    check(npu.npu_moe_gating_top_k_softmax_v2, second, x, k=3, renorm=0, output_softmax=True)


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize("select", [0, 1])
def test_gating_by_groups_with_a_bias(norm: int, select: int) -> None:
    x, bias = torch.randn(5, 8), torch.randn(8)

    def plain(x: Tensor, k: int, *, bias: Tensor, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
        p = x.double().sigmoid() if norm else x.double().softmax(-1)
        chosen = []
        for row in p + bias.double():
            groups = row.view(4, 2)
            kept = best(groups.sum(-1) if select else groups.amax(-1), 2)
            masked = torch.tensor([v if i // 2 in kept else -torch.inf for i, v in enumerate(row.tolist())])
            chosen.append(best(masked, k))
        weights = p.gather(1, torch.tensor(chosen))
        if norm:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return (2.5 * weights).float(), torch.tensor(chosen, dtype=torch.int32), p.float()

    given = {"k_group": 2, "group_count": 4, "group_select_mode": select, "norm_type": norm, "out_flag": True}
    check(npu.npu_moe_gating_top_k, plain, x, 3, bias=bias, routed_scaling_factor=2.5, **given)


EXPERTS = torch.tensor([[2, 0], [1, 2], [0, 3]], dtype=torch.int32)


def test_routing_there_and_back() -> None:
    x = torch.randn(3, 4)
    order = sorted(range(6), key=lambda i: EXPERTS.flatten()[i].item())

    def first(x: Tensor, row_idx: Tensor, experts: Tensor, active: int) -> tuple[Tensor, Tensor, Tensor]:
        sources = [row_idx.flatten()[i].item() for i in order]
        where = torch.tensor([sources.index(i) for i in range(6)], dtype=torch.int32)
        return x[[s % 3 for s in sources]], where, experts.flatten().sort().values

    rows = torch.arange(6, dtype=torch.int32).view(2, 3).t().contiguous()
    check(npu.npu_moe_init_routing, first, x, rows, EXPERTS, 3)

    def second(x: Tensor, experts: Tensor, **how: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        where = torch.tensor([order.index(i) for i in range(6)], dtype=torch.int32)
        counts = torch.tensor([2, 1, 2, 1])
        if how["row_idx_type"]:
            where = torch.tensor(order, dtype=torch.int32)
        if how["expert_tokens_num_type"] == 0:
            counts = counts.cumsum(0)
        return x[[i // 2 for i in order]], where, counts

    for row_type, number in ((0, 0), (1, 1)):
        found = npu.npu_moe_init_routing_v2(
            x.npu(),
            EXPERTS.npu(),
            active_num=6,
            expert_num=4,
            expert_tokens_num_type=number,
            expert_tokens_num_flag=True,
            active_expert_range=[0, 4],
            row_idx_type=row_type,
        )
        same(list(found[:3]), second(x, EXPERTS, row_idx_type=row_type, expert_tokens_num_type=number))


def test_rows_of_other_ranks_are_last_and_nowhere() -> None:
    rows, where, tokens, _ = npu.npu_moe_init_routing_v2(
        torch.arange(3.0).view(3, 1).npu(),
        EXPERTS.npu(),
        active_num=6,
        expert_num=4,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[2, 4],
    )
    assert rows.flatten().tolist()[:3] == [0, 1, 2] and tokens.tolist() == [2, 1]
    assert where.tolist() == [0, -1, -1, 1, -1, 2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", [0, 2])
def test_finalize_routing(dtype: torch.dtype, mode: int) -> None:
    rows, bias, scales = torch.randn(6, 4, dtype=dtype), torch.randn(4, 4, dtype=dtype), torch.rand(3, 2, dtype=dtype)
    skip, places = torch.randn(3, 4, dtype=dtype), torch.tensor([4, 1, -1, 0, 5, 2], dtype=torch.int32)

    def plain(rows: Tensor, skip1: Tensor, skip2: None, bias: Tensor, scales: Tensor, *_: Any) -> Tensor:
        out = skip1.double().clone()
        for i in range(3):
            for k in range(2):
                place = places[k * 3 + i if mode == 0 else i * 2 + k].item()
                row = rows[place].double() if place != -1 else 0
                out[i] += scales[i, k].double() * (row + bias[EXPERTS[i, k]].double())
        return out.to(rows.dtype)

    check(npu.npu_moe_finalize_routing, plain, rows, skip, None, bias, scales, places, EXPERTS, mode)


def test_the_last_row_of_each_expert() -> None:
    ordered = torch.tensor([0, 0, 2, 2, 2, 3], dtype=torch.int32)
    check(
        npu.npu_moe_compute_expert_tokens,
        lambda s, n: torch.tensor([(s <= i).sum() for i in range(n)], dtype=torch.int32),
        ordered,
        5,
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_permute_and_unpermute(dtype: torch.dtype) -> None:
    x, probabilities = torch.randn(3, 4, dtype=dtype), torch.rand(3, 2, dtype=dtype)
    order = sorted(range(6), key=lambda i: EXPERTS.flatten()[i].item())
    places = torch.tensor([order.index(i) for i in range(6)], dtype=torch.int32)
    check(npu.npu_moe_token_permute, lambda x, e: (x[[i // 2 for i in order]], places), x, EXPERTS)

    def back(rows: Tensor, places: Tensor, probabilities: Tensor) -> Tensor:
        copies = rows.double()[places.long()].view(3, 2, 4)
        return (copies * probabilities.double().unsqueeze(-1)).sum(1).to(rows.dtype)

    check(npu.npu_moe_token_unpermute, back, x[[i // 2 for i in order]], places, probabilities)


def test_from_ranks_to_experts() -> None:
    counts, x = torch.tensor([[1, 2], [0, 1], [2, 0]], dtype=torch.int32), torch.randn(6, 3)
    order = [0, 4, 5, 1, 2, 3]
    found = npu.npu_moe_re_routing(x.npu(), counts.npu(), per_token_scales=x[:, 0].contiguous().npu())
    same(list(found), [x[order], x[order, 0], torch.tensor(order, dtype=torch.int32), counts.sum(0).to(torch.int32)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("stacked", [True, False])
def test_grouped_matmul(dtype: torch.dtype, kind: int, stacked: bool) -> None:
    x, weights = torch.randn(6, 4, dtype=dtype), torch.randn(3, 4, 5, dtype=dtype)
    counts = torch.tensor([2, 0, 4])

    def plain(x: list[Tensor], weight: list[Tensor], **_: Any) -> list[Tensor]:
        whole = weight[0] if stacked else torch.stack(weight)
        return [torch.cat([x[0][:2].double() @ whole[0].double(), x[0][2:].double() @ whole[2].double()]).to(dtype)]

    check(
        npu.npu_grouped_matmul,
        plain,
        [x],
        [weights] if stacked else list(weights.unbind()),
        group_list=counts.cumsum(0) if kind == 0 else counts,
        split_item=3,
        group_type=0,
        group_list_type=kind,
    )


def test_grouped_matmul_of_pairs() -> None:
    xs, weights = [torch.randn(2, 4), torch.randn(3, 4)], [torch.randn(4, 5), torch.randn(4, 6)]
    check(
        npu.npu_grouped_matmul,
        lambda x, weight, **_: [(a.double() @ b.double()).float() for a, b in zip(x, weight, strict=True)],
        xs,
        weights,
        split_item=0,
        group_type=-1,
    )


COUNTS = [2, 0, 3]  # and a row that no group has


def quantised() -> tuple[Tensor, ...]:
    """Rows, weights of three groups, and the scales of both."""
    x, weight = torch.randint(-128, 128, (6, 16)), torch.randint(-128, 128, (3, 16, 8))
    return x.to(torch.int8), weight.to(torch.int8), torch.rand(3, 8) / 100, torch.rand(6)


def by_groups(x: Tensor, weight: Tensor, scale: Tensor, token_scale: Tensor) -> Tensor:
    rows = torch.cat([torch.full((n,), i) for i, n in enumerate(COUNTS)])
    y = torch.einsum("rk,rkn->rn", x[:5].double(), weight[rows].double()) * scale[rows].double()
    return torch.cat((y * token_scale[:5].double().unsqueeze(1), torch.zeros(1, 8, dtype=torch.double)))


def test_grouped_matmul_swiglu_quant() -> None:
    x, weight, scale, token_scale = quantised()
    a, b = by_groups(x, weight, scale, token_scale)[:5].chunk(2, -1)
    y = torch.nn.functional.silu(a) * b
    scales = y.abs().amax(-1) / 127
    wanted = (y / scales.unsqueeze(1)).round()
    on = [t.npu() for t in (x, weight, scale, token_scale)]
    ends = torch.tensor(COUNTS).cumsum(0).npu()
    first = npu.npu_grouped_matmul_swiglu_quant(on[0], on[1], ends, on[2], on[3])
    given = (on[0], [on[1]], [on[2]], on[3])
    others = [
        npu.npu_grouped_matmul_swiglu_quant_v2(*given, ends),
        npu.npu_grouped_matmul_swiglu_quant_v2(*given, torch.tensor(COUNTS).npu(), group_list_type=1),
    ]
    for values, found, *_ in (first, *others):
        assert values.dtype == torch.int8 and values.shape == (6, 4)
        assert (values[:5].cpu() - wanted).abs().max() <= 1
        same(found[:5], scales.float())

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        values, found = npu.npu_grouped_matmul_swiglu_quant_v2(*given, ends)
    graph.replay()
    same([values, found], list(first[:2]))
    with pytest.raises(RuntimeError, match="smooth_scale is not emulated"):
        npu.npu_grouped_matmul_swiglu_quant_v2(*given, ends, smooth_scale=on[2])
    with pytest.raises(RuntimeError, match="a bias or an offset is not emulated"):
        npu.npu_grouped_matmul_swiglu_quant(on[0], on[1], ends, on[2], on[3], bias=on[2])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", [0, 1])
def test_grouped_matmul_finalize_routing(shared: bool, kind: int) -> None:
    x, weight, scale, token_scale = quantised()
    rows, logit = torch.tensor([1, 0, 3, 1, 3, 0]), torch.rand(6)
    counts = torch.tensor(COUNTS)

    def plain(x: Tensor, w: Tensor, counts: Tensor, **how: Any) -> Tensor:
        y = by_groups(x, w, how["scale"], how["pertoken_scale"]) * how["logit"].double().unsqueeze(1)
        out = torch.zeros(4, 8, dtype=torch.double)
        for row, to in zip(y, rows.tolist(), strict=True):
            out[to] += row
        if shared:
            out[2:4] += 0.5 * how["shared_input"].double()
        return out.float()

    how = {"shared_input": torch.randn(2, 8).bfloat16(), "shared_input_weight": 0.5, "shared_input_offset": 2}
    check(
        npu.npu_grouped_matmul_finalize_routing,
        plain,
        x,
        weight,
        counts if kind else counts.cumsum(0),
        scale=scale,
        pertoken_scale=token_scale,
        logit=logit,
        row_index=rows,
        output_bs=4,
        group_list_type=kind,
        **(how if shared else {}),
    )
    with pytest.raises(RuntimeError, match="bias is not emulated"):
        npu.npu_grouped_matmul_finalize_routing(x.npu(), weight.npu(), counts.npu(), bias=scale.npu())


def test_what_is_not_emulated_says_so() -> None:
    x = torch.ones(2, 4, device="npu")
    with pytest.raises(RuntimeError, match="padded_mode"):
        npu.npu_moe_token_permute(x, EXPERTS[:2].npu(), padded_mode=True)
        torch.npu.synchronize()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_histc_counts_rows_by_expert_in_their_own_dtype(dtype: torch.dtype) -> None:
    experts = torch.tensor([0, 3, 3, 7, 2, 8, 0]).to(dtype)  # 8 is nobody's

    def plain(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x == expert).sum() for expert in range(8)]).to(x.dtype)

    check(lambda x: torch.histc(x, bins=8, min=0, max=7), plain, experts)
