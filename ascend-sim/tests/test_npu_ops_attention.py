"""Attention against softmax(scale * q k^T + mask) v for each sequence and head, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch_npu
from torch import Tensor

from .plain import check, same, tasks

npu = torch.ops.npu
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def one(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None, sink: Tensor | None = None) -> Any:
    """One sequence: q [rows, heads, width], k and v [columns, key heads, width]; hidden [rows, columns]."""
    out, lse = q.new_zeros(*q.shape[:2], v.shape[2], dtype=torch.float64), torch.zeros(q.shape[:2])
    for i, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        shared = head // (q.shape[1] // k.shape[1])
        scores = k[:, shared].double() @ q[i, head].double() * scale
        if hidden is not None:
            scores = scores.masked_fill(hidden[i].bool(), -math.inf)
        every = scores if sink is None else torch.cat((scores, sink[head : head + 1].double()))
        if not torch.isfinite(every).any():
            lse[i, head] = math.inf
            continue
        lse[i, head] = every.logsumexp(0)
        out[i, head] = (scores - every.logsumexp(0)).exp() @ v[:, shared].double()
    return out.to(q.dtype), lse


def hidden(rows: int, columns: int, mode: int, before: int = 2**31 - 1, after: int = 2**31 - 1) -> Tensor:
    """What a sparse mode hides."""
    offset = 0 if mode in (0, 2) else columns - rows
    if mode in (2, 3):
        before, after = 2**31 - 1, 0
    i, j = torch.arange(rows).unsqueeze(1), torch.arange(columns)
    return (j > i + offset + after) | (j < i + offset - before)


def packed(
    q: Tensor, k: Tensor, v: Tensor, *, ends: list[int], key_ends: list[int], mode: int = 0, scale: float, **how: Any
) -> tuple[Tensor, Tensor]:
    """Sequences one behind the other."""
    out, lse = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype), torch.full((*q.shape[:2], 1), math.inf)
    sink = how.pop("sink", None)
    for (a, b), (c, d) in zip(itertools.pairwise([0, *ends]), itertools.pairwise([0, *key_ends]), strict=True):
        found = one(q[a:b], k[c:d], v[c:d], scale, hidden(b - a, d - c, mode, **how) if mode else None, sink)
        out[a:b], lse[a:b, :, 0] = found
    return out, lse


def cached(lengths: list[int], size: int, heads: int, width: int, dtype: torch.dtype) -> Any:
    """Keys (or values) of sequences, and the same in shuffled blocks of a cache with their table."""
    rows = [torch.randn(n, heads, width, dtype=dtype) for n in lengths]
    each = max(1, max(-(-n // size) for n in lengths))
    order = torch.randperm(len(lengths) * each + 2, generator=torch.Generator().manual_seed(1))
    table = order[: len(lengths) * each].view(len(lengths), each).to(torch.int32)
    cache = torch.randn(len(order), size, heads, width, dtype=dtype)
    for row, blocks in zip(rows, table.tolist(), strict=True):
        for i in range(row.shape[0]):
            cache[blocks[i // size], i % size] = row[i]
    return rows, cache, table


class TestFusedInfer:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("heads, shared", [(4, 4), (6, 2), (4, 1)])
    @pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD", "BNSD_BSND", "BSND_BNSD", "BSH_NBSD"])
    def test_layouts_and_shared_heads(self, dtype: torch.dtype, heads: int, shared: int, layout: str) -> None:
        q = torch.randn(2, 5, heads, 8, dtype=dtype)
        k, v = torch.randn(2, 7, shared, 8, dtype=dtype), torch.randn(2, 7, shared, 8, dtype=dtype)
        given, _, wanted = layout.partition("_")
        orders = {
            "BSH": lambda t: t.flatten(2),
            "BSND": lambda t: t,
            "BNSD": lambda t: t.transpose(1, 2),
            "NBSD": lambda t: t.permute(2, 0, 1, 3),
        }

        def plain(q: Tensor, k: Tensor, v: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            if given == "BSH":
                q, k, v = (t.unflatten(2, (-1, 8)) for t in (q, k, v))
            if given == "BNSD":
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            both = [one(*of, 0.3) for of in zip(q, k, v, strict=True)]
            out, lse = (torch.stack(x) for x in zip(*both, strict=True))
            return orders[wanted or given](out), lse.transpose(1, 2).unsqueeze(-1)

        check(
            npu.npu_fused_infer_attention_score,
            plain,
            *(orders[given](t) for t in (q, k, v)),
            num_heads=heads,
            num_key_value_heads=shared if shared != heads else 0,
            scale=0.3,
            input_layout=layout,
            softmax_lse_flag=True,
        )

    @pytest.mark.parametrize("mode, how", [(0, {}), (2, {}), (3, {}), (4, {"before": 2, "after": 1})])
    @pytest.mark.parametrize("second", [False, True])
    def test_packed_sequences(self, mode: int, how: dict[str, int], second: bool) -> None:
        ends, key_ends = [3, 3, 8], [5, 7, 12]
        q, k, v = torch.randn(9, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
        names = ("num_query_heads", "softmax_scale", "actual_seq_qlen", "actual_seq_kvlen", "return_softmax_lse")
        if not second:
            names = ("num_heads", "scale", "actual_seq_lengths", "actual_seq_lengths_kv", "softmax_lse_flag")
        op = npu.npu_fused_infer_attention_score_v2 if second else npu.npu_fused_infer_attention_score
        given = dict(zip(names, (4, 0.5, ends, key_ends, True), strict=True))
        window = {"pre_tokens": how["before"], "next_tokens": how["after"]} if how else {}

        def plain(q: Tensor, k: Tensor, v: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            return packed(q, k, v, ends=ends, key_ends=key_ends, mode=mode, scale=0.5, **how)

        check(
            op,
            plain,
            q,
            k,
            v,
            num_key_value_heads=2,
            input_layout="TND",
            sparse_mode=mode,
            atten_mask=CAUSAL if mode else None,
            **given,
            **window,
        )

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("order", ["BnBsH", "BnNBsD", "NZ"])
    def test_a_cache_in_blocks(self, dtype: torch.dtype, order: str) -> None:
        ends, lengths = [4, 5, 6, 9], [9, 1, 0, 6]
        keys, key_cache, table = cached(lengths, 4, 2, 32, dtype)
        values, value_cache, _ = cached(lengths, 4, 2, 32, dtype)
        q = torch.randn(9, 4, 32, dtype=dtype)
        out, _ = packed(
            q,
            torch.cat(keys),
            torch.cat(values),
            ends=ends,
            key_ends=list(itertools.accumulate(lengths)),
            mode=3,
            scale=0.2,
        )
        orders = {
            "BnBsH": lambda c: c.flatten(2),
            "BnNBsD": lambda c: c.transpose(1, 2).contiguous(),
            "NZ": lambda c: c.view(-1, 4, 2, 2, 16).permute(0, 2, 3, 1, 4).contiguous(),
        }
        found, lse = npu.npu_fused_infer_attention_score(
            q.npu(),
            orders[order](key_cache).npu(),
            orders[order](value_cache).npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale=0.2,
            input_layout="TND",
            sparse_mode=3,
            atten_mask=CAUSAL.npu(),
            block_table=table.npu(),
            block_size=4,
            actual_seq_lengths=ends,
            actual_seq_lengths_kv=lengths,
        )
        same(found, out)
        assert lse.shape == (0,)

    def test_decode_from_a_cache_ignores_the_sparse_mode(self) -> None:
        lengths = [9, 3]
        keys, cache, table = cached(lengths, 4, 2, 8, torch.float32)
        q = torch.randn(2, 1, 4 * 8)
        found, _ = npu.npu_fused_infer_attention_score(
            q.npu(),
            cache.flatten(2).npu(),
            cache.flatten(2).npu(),
            num_heads=4,
            num_key_value_heads=2,
            sparse_mode=2,
            atten_mask=CAUSAL.npu(),
            block_table=table.npu(),
            block_size=4,
            actual_seq_lengths_kv=lengths,
        )
        wanted = [one(a.view(1, 4, 8), k, k, 1.0)[0].view(1, 32) for a, k in zip(q, keys, strict=True)]
        same(found, torch.stack(wanted))

    @pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (2, 1, 5, 7), (1, 1, 6, 9)])
    @pytest.mark.parametrize("kind", [torch.bool, torch.int8])
    def test_a_mask_of_ones_own(self, shape: tuple[int, ...], kind: torch.dtype) -> None:
        q, k = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8)
        mask = torch.arange(math.prod(shape)).view(shape) * 7 % 3 == 0
        mask[..., 2, :] = True  # a query that sees nothing

        def plain(q: Tensor, k: Tensor, v: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            masks = [mask.view(-1, *shape[-2:])[min(i, mask.numel() // math.prod(shape[-2:]) - 1)] for i in range(2)]
            both = [one(*of, 1.0, m[:5, :7]) for *of, m in zip(q, k, v, masks, strict=True)]
            out, lse = (torch.stack(x) for x in zip(*both, strict=True))
            return out, lse.transpose(1, 2).unsqueeze(-1)

        check(
            npu.npu_fused_infer_attention_score,
            plain,
            q,
            k,
            k.clone(),
            num_heads=3,
            input_layout="BSND",
            atten_mask=mask.to(kind),
            softmax_lse_flag=True,
        )

    def test_lengths_of_a_batch_and_a_window_without_a_mask_is_none(self) -> None:
        q, k = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8)
        found, _ = npu.npu_fused_infer_attention_score(
            q.npu(),
            k.npu(),
            k.npu(),
            num_heads=3,
            input_layout="BSND",
            actual_seq_lengths=[5, 2],
            actual_seq_lengths_kv=[4],
            pre_tokens=0,
            next_tokens=0,
        )
        wanted = torch.zeros(2, 5, 3, 8)
        wanted[0], wanted[1, :2] = one(q[0], k[0, :4], k[0, :4], 1.0)[0], one(q[1, :2], k[1, :4], k[1, :4], 1.0)[0]
        same(found, wanted)

    def test_a_bias(self) -> None:
        q, k, bias = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 6, 8)

        def plain(q: Tensor, k: Tensor, v: Tensor, pse_shift: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            scores = q.double() @ k.double().transpose(-1, -2) * 0.5 + pse_shift[..., :5, :7].double()
            return (scores.softmax(-1) @ v.double()).float(), torch.empty(0)

        check(
            npu.npu_fused_infer_attention_score,
            plain,
            q,
            k,
            k.clone(),
            pse_shift=bias,
            num_heads=2,
            scale=0.5,
            input_layout="BNSD",
        )

    def test_latent_attention_with_rotary_parts(self) -> None:
        lengths = [6, 2]
        keys, cache, table = cached(lengths, 4, 1, 16, torch.bfloat16)
        ropes, rope_cache, _ = cached(lengths, 4, 1, 8, torch.bfloat16)
        q, q_rope = torch.randn(2, 4, 16).bfloat16(), torch.randn(2, 4, 8).bfloat16()
        for op, names in (
            (npu.npu_fused_infer_attention_score, ("num_heads", "actual_seq_lengths", "actual_seq_lengths_kv")),
            (npu.npu_fused_infer_attention_score_v2, ("num_query_heads", "actual_seq_qlen", "actual_seq_kvlen")),
        ):
            found, _ = op(
                q.npu(),
                cache.flatten(2).npu(),
                cache.flatten(2).npu(),
                query_rope=q_rope.npu(),
                key_rope=rope_cache.flatten(2).npu(),
                num_key_value_heads=1,
                input_layout="TND_NTD",
                block_table=table.npu(),
                block_size=4,
                **dict(zip(names, (4, [1, 2], lengths), strict=True)),
            )
            wanted = [
                one(torch.cat((a, b), -1)[None], torch.cat((k, r), -1), k, 1.0)[0]
                for a, b, k, r in zip(q, q_rope, keys, ropes, strict=True)
            ]
            same(found, torch.cat(wanted).transpose(0, 1))

    def test_a_sink_takes_its_part(self) -> None:
        q, k, sink = torch.randn(5, 4, 8), torch.randn(5, 2, 8), torch.randn(4)

        def plain(q: Tensor, k: Tensor, v: Tensor, learnable_sink: Tensor, **_: object) -> tuple[Tensor, Tensor]:
            return packed(q, k, v, ends=[2, 5], key_ends=[2, 5], mode=3, scale=1.0, sink=learnable_sink)[
                0
            ], torch.empty(0)

        check(
            npu.npu_fused_infer_attention_score_v2,
            plain,
            q,
            k,
            k.clone(),
            learnable_sink=sink,
            num_query_heads=4,
            num_key_value_heads=2,
            input_layout="TND",
            sparse_mode=3,
            atten_mask=CAUSAL,
            actual_seq_qlen=[2, 5],
            actual_seq_kvlen=[2, 5],
        )

    def test_keys_in_int8_with_a_scale_for_each_channel(self) -> None:
        lengths = [6, 3]
        _, cache, table = cached(lengths, 4, 2, 8, torch.float32)
        cache = (cache * 20).to(torch.int8)
        scale, offset = torch.rand(2, 8).bfloat16(), torch.randn(2, 8).bfloat16()
        q = torch.randn(2, 4, 1, 8).bfloat16()
        found, _ = npu.npu_fused_infer_attention_score(
            q.npu(),
            cache.transpose(1, 2).contiguous().npu(),
            cache.transpose(1, 2).contiguous().npu(),
            key_antiquant_scale=scale.npu(),
            key_antiquant_offset=offset.npu(),
            value_antiquant_scale=scale.npu(),
            value_antiquant_offset=offset.npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale=0.01,
            input_layout="BNSD",
            block_table=table.npu(),
            block_size=4,
            actual_seq_lengths_kv=lengths,
        )
        real = (cache.double() + offset.double()) * scale.double()
        for i, n in enumerate(lengths):
            rows = torch.cat([real[b] for b in table[i].tolist()])[:n]
            same(found[i], one(q[i].transpose(0, 1), rows, rows, 0.01)[0].transpose(0, 1))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"sparse_mode": 5}, "sparse_mode 5 is not emulated"),
            ({"sparse_mode": 3, "atten_mask": None}, r"needs an atten_mask of \[2048, 2048\]"),
            ({"input_layout": "NDT"}, "no input_layout NDT"),
            ({"num_heads": 3}, "3 heads can't share 2 key heads"),
            ({"num_heads": 8}, "4 heads, not 8"),
            ({"block_size": 8}, "block_size 8 and a cache of blocks of 4"),
            ({"actual_seq_lengths": None}, "layout TND needs actual_seq_lengths"),
            ({"actual_seq_lengths": [2, 1]}, "sums that grow"),
            ({"actual_seq_lengths": [2, 9]}, "end at 9 of 3 tokens"),
            ({"actual_seq_lengths_kv": [2]}, "2 sequences and 1 actual_seq_lengths_kv"),
            ({"actual_seq_lengths_kv": [2, 99]}, "99 keys in"),
            ({"quant_scale2": torch.ones(1)}, "with quant_scale2 is not emulated"),
            ({"query_rope": torch.ones(3, 4, 8)}, "go together"),
        ],
    )
    def test_what_does_not_fit_is_said_at_the_call(self, change: dict[str, Any], message: str) -> None:
        _, cache, table = cached([2, 5], 4, 2, 8, torch.float32)
        given = {
            "num_heads": 4,
            "num_key_value_heads": 2,
            "input_layout": "TND",
            "block_table": table,
            "block_size": 4,
            "actual_seq_lengths": [2, 3],
            "actual_seq_lengths_kv": [2, 5],
            **change,
        }
        named = {n: a.npu() if isinstance(a, Tensor) else a for n, a in given.items()}
        flat = cache.flatten(2).npu()
        before = tasks()
        with pytest.raises(RuntimeError, match=message):
            npu.npu_fused_infer_attention_score(torch.randn(3, 4, 8).npu(), flat, flat, **named)
        assert tasks() == before


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_older_ops(dtype: torch.dtype) -> None:
    lengths = [9, 3]
    keys, cache, table = cached(lengths, 4, 2, 8, dtype)
    q = torch.randn(2, 1, 4 * 8, dtype=dtype)
    given = {"num_heads": 4, "num_key_value_heads": 2, "scale_value": 0.5}
    flat = cache.flatten(2).npu()
    found = npu.npu_incre_flash_attention(
        q.npu(), flat, flat, actual_seq_lengths=lengths, block_table=table.npu(), block_size=4, **given
    )
    wanted = [one(a.view(1, 4, 8), k, k, 0.5)[0].view(1, 32) for a, k in zip(q, keys, strict=True)]
    same(found, torch.stack(wanted))

    q, k, v = torch.randn(1, 5, 4, 8, dtype=dtype), torch.randn(1, 7, 2, 8, dtype=dtype), torch.randn(1, 7, 2, 8)

    def plain(q: Tensor, k: Tensor, v: Tensor, *, sparse_mode: int, **_: object) -> Tensor:
        return one(q[0], k[0], v[0], 0.5, hidden(5, 7, sparse_mode) if sparse_mode else None)[0].unsqueeze(0)

    for mode in (0, 2, 3):
        check(
            npu.npu_prompt_flash_attention,
            plain,
            q,
            k,
            v.to(dtype),
            sparse_mode=mode,
            atten_mask=CAUSAL if mode else None,
            input_layout="BSND",
            **given,
        )
    with pytest.raises(RuntimeError, match="with quant_scale1 is not emulated"):
        npu.npu_prompt_flash_attention(q.npu(), k.npu(), k.npu(), quant_scale1=torch.ones(1).npu(), **given)


@pytest.mark.parametrize("second", [False, True])
def test_a_graph_s_attention_is_updated_as_vllm_ascend_does_it(second: bool) -> None:
    heads, shared, width, size = 4, 2, 8, 4
    _, key_cache, table = cached([12, 12], size, shared, width, torch.bfloat16)
    _, value_cache, _ = cached([12, 12], size, shared, width, torch.bfloat16)
    q = torch.randn(2, heads, width).bfloat16()
    flat_keys, flat_values = key_cache.flatten(2).npu(), value_cache.flatten(2).npu()
    on_npu, out, lse = q.npu(), torch.empty(2, heads, width).bfloat16().npu(), torch.empty(1).bfloat16().npu()
    blocks, mask = table.npu(), CAUSAL.npu()
    if second:
        op, max_workspace = (
            torch_npu.npu_fused_infer_attention_score_v2,
            torch_npu._npu_fused_infer_attention_score_v2_get_max_workspace,
        )
        names = ("num_query_heads", "softmax_scale", "actual_seq_qlen", "actual_seq_kvlen")
    else:
        op, max_workspace = (
            torch_npu.npu_fused_infer_attention_score,
            torch_npu._npu_fused_infer_attention_score_get_max_workspace,
        )
        names = ("num_heads", "scale", "actual_seq_lengths", "actual_seq_lengths_kv")

    def given(lengths: list[int]) -> dict[str, Any]:
        return {
            "query": on_npu,
            "key": flat_keys,
            "value": flat_values,
            "atten_mask": mask,
            "block_table": blocks,
            "block_size": size,
            "input_layout": "TND",
            "sparse_mode": 3,
            "num_key_value_heads": shared,
            **dict(zip(names, (heads, 0.4, [1, 2], lengths), strict=True)),
        }

    before = tasks()
    workspace = max_workspace(**given([3, 4]))
    assert workspace.dtype == torch.uint8 and workspace.numel() > 0 and tasks() == before
    graph, update, event = torch.npu.NPUGraph(), torch.npu.Stream(), torch.npu.ExternalEvent()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        event.wait(stream)
        event.reset(stream)
        torch.npu.graph_task_group_begin(stream)
        op.out(**given([3, 4]), workspace=workspace, out=[out, lse])
        handle = torch.npu.graph_task_group_end(stream)
    for lengths in ([3, 4], [12, 1], [7, 9]):
        graph.replay()
        with torch.npu.stream(update):
            torch.npu.graph_task_update_begin(update, handle)
            op.out(**given(lengths), workspace=workspace, out=[out, lse])
            torch.npu.graph_task_update_end(update)
            event.record(update)
        torch.npu.synchronize()
        for i, n in enumerate(lengths):
            keys, values = (torch.cat([c[b] for b in table[i].tolist()])[:n] for c in (key_cache, value_cache))
            same(out[i : i + 1], one(q[i : i + 1], keys, values, 0.4)[0])


def test_results_that_do_not_fit_are_refused() -> None:
    q, wrong = torch.randn(2, 1, 8, device="npu"), torch.empty(2, 1, 9, device="npu")
    with pytest.raises(RuntimeError, match=r"attention_out is .*\[2, 1, 9\], not"):
        torch_npu.npu_fused_infer_attention_score.out(q, q, q, num_heads=1, out=[wrong, wrong])


class TestAtb:
    """ATB's ops; lengths lie on the host."""

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_paged_attention_and_its_update(self, dtype: torch.dtype) -> None:
        lengths = [9, 1, 0, 6]
        keys, key_cache, table = cached(lengths, 4, 2, 8, dtype)
        values, value_cache, _ = cached(lengths, 4, 2, 8, dtype)
        q, out = torch.randn(4, 6, 8, dtype=dtype), torch.empty(4, 6, 8, dtype=dtype, device="npu")
        given = (q.npu(), key_cache.npu(), value_cache.npu(), 2, 6, 0.5, table.npu())
        workspace = torch_npu._npu_paged_attention_get_workspace(*given, torch.tensor(lengths).int(), out)
        before = tasks()
        torch_npu._npu_paged_attention(*given, torch.tensor(lengths).int(), out, workspace=workspace)
        assert tasks() - before == 1
        same(
            out, torch.cat([one(q[i : i + 1], k, v, 0.5)[0] for i, (k, v) in enumerate(zip(keys, values, strict=True))])
        )

        graph, update, event = torch.npu.NPUGraph(), torch.npu.Stream(), torch.npu.ExternalEvent()
        with torch.npu.graph(graph):
            stream = torch.npu.current_stream()
            event.wait(stream)
            event.reset(stream)
            torch.npu.graph_task_group_begin(stream)
            torch_npu._npu_paged_attention(*given, torch.tensor(lengths).int(), out, workspace=workspace)
            handle = torch.npu.graph_task_group_end(stream)
        graph.replay()
        with torch.npu.stream(update):
            torch.npu.graph_task_update_begin(update, handle)
            torch_npu._npu_paged_attention(*given, torch.tensor([2, 1, 0, 5]).int(), out, workspace=workspace)
            torch.npu.graph_task_update_end(update)
            event.record(update)
        torch.npu.synchronize()
        same(out[:1], one(q[:1], keys[0][:2], values[0][:2], 0.5)[0])
        same(out[3:], one(q[3:], keys[3][:5], values[3][:5], 0.5)[0])

    def test_paged_attention_over_latents(self) -> None:
        keys, cache, table = cached([5, 2], 4, 1, 12, torch.float16)
        q = torch.randn(2, 4, 12).half()

        def plain(q: Tensor, *rest: Any) -> None:
            rest[-1].copy_(torch.cat([one(a[None], k, k[..., :8], 0.3)[0] for a, k in zip(q, keys, strict=True)]))

        lengths, out = torch.tensor([5, 2]).int(), torch.zeros(2, 4, 8).half().npu()
        torch_npu._npu_paged_attention_mla(q.npu(), cache.npu(), 1, 4, 0.3, table.npu(), lengths, 8, out)
        wanted = torch.zeros(2, 4, 8).half()
        plain(q, wanted)
        same(out, wanted)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_flash_attention_over_sequences(self, dtype: torch.dtype) -> None:
        q, k, v = (
            torch.randn(7, 4, 8, dtype=dtype),
            torch.randn(7, 2, 8, dtype=dtype),
            torch.randn(7, 2, 8, dtype=dtype),
        )
        mask = torch.ones(8, 8, dtype=dtype).triu(1)
        lengths, out = torch.tensor([4, 3]).int(), torch.zeros(7, 4, 8, dtype=dtype)

        def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, seq_len: Tensor, *, out: Tensor, **_: object) -> None:
            out.copy_(packed(q, k, v, ends=[4, 7], key_ends=[4, 7], mode=3, scale=0.5)[0])

        on_npu = out.npu()
        sizes = {"scale_value": 0.5, "num_heads": 4, "num_kv_heads": 2}
        given = [q.npu(), k.npu(), v.npu()]
        before = tasks()
        torch_npu._npu_flash_attention(*given, mask.npu(), lengths, out=on_npu, **sizes)
        assert tasks() - before == 1
        causal(q, k, v, mask, lengths, out=out)
        same(on_npu, out)
        torch_npu._npu_flash_attention_unpad(*given, lengths, out=on_npu, **sizes)
        same(on_npu, packed(q, k, v, ends=[4, 7], key_ends=[4, 7], scale=0.5)[0])

    def test_new_tokens_over_a_cache(self) -> None:
        lengths, news = [9, 4], [3, 4]
        keys, key_cache, table = cached(lengths, 4, 2, 8, torch.float16)
        values, value_cache, _ = cached(lengths, 4, 2, 8, torch.float16)
        q, out = torch.randn(7, 4, 8).half(), torch.empty(7, 4, 8).half().npu()
        torch_npu._npu_flash_attention_qlens(
            q.npu(),
            key_cache.npu(),
            value_cache.npu(),
            table.npu(),
            CAUSAL.half().npu(),
            torch.tensor(news).int(),
            torch.tensor(lengths).int(),
            2,
            4,
            0.5,
            out,
        )
        wanted = packed(q, torch.cat(keys), torch.cat(values), ends=[3, 7], key_ends=[9, 13], mode=3, scale=0.5)
        same(out, wanted[0])

    def test_a_cache_s_rows_are_loaded_one_sequence_behind_the_other(self) -> None:
        keys, key_cache, table = cached([5, 2], 4, 2, 8, torch.float16)
        values, value_cache, _ = cached([5, 2], 4, 2, 8, torch.float16)
        given = (key_cache.npu(), value_cache.npu(), table.npu())
        for lengths in (torch.tensor([5, 2]).int(), torch.tensor([5, 2]).int().npu()):
            key, value = torch_npu.atb.npu_paged_cache_load(*given, lengths)
            assert torch.equal(key.cpu(), torch.cat(keys)) and torch.equal(value.cpu(), torch.cat(values))
        ends = torch.tensor([5, 7]).int()
        key, value = torch.zeros(7, 2, 8).half().npu(), torch.zeros(7, 2, 8).half().npu()
        torch.ops.atb.npu_paged_cache_load.out(*given, ends, cumsum=True, key=key, value=value)
        assert torch.equal(key.cpu(), torch.cat(keys)) and torch.equal(value.cpu(), torch.cat(values))

    def test_a_cache_is_loaded_from_the_block_of_a_start(self) -> None:
        keys, key_cache, table = cached([11, 6], 4, 1, 8, torch.float16)
        values, value_cache, _ = cached([11, 6], 4, 1, 8, torch.float16)
        starts, ends = torch.tensor([8, 4]).int().npu(), torch.tensor([0, 3, 5]).int().npu()
        key, value = torch.zeros(5, 1, 8).half().npu(), torch.zeros(5, 1, 8).half().npu()
        torch.ops.atb.npu_paged_cache_load.out(
            key_cache.npu(), value_cache.npu(), table.npu(), ends, seq_starts=starts, cumsum=True, key=key, value=value
        )
        for found, all_rows in ((key, keys), (value, values)):
            assert torch.equal(found.cpu(), torch.cat((all_rows[0][8:], all_rows[1][4:])))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_parts_are_merged_by_their_sums(self, dtype: torch.dtype) -> None:
        sums, outs = [torch.randn(6) for _ in range(3)], [torch.randn(6, 8).to(dtype) for _ in range(3)]

        def plain(sums: list[torch.Tensor], outs: list[torch.Tensor], _: int) -> tuple[torch.Tensor, torch.Tensor]:
            weights = torch.stack(sums).double().softmax(0)
            out = sum(w.unsqueeze(1) * o.double() for w, o in zip(weights, outs, strict=True))
            return out.to(dtype), torch.stack(sums).double().exp().sum(0).log().float()

        check(torch.ops.npu.npu_attention_update, plain, sums, outs, 1)
        found, _ = torch.ops.npu.npu_attention_update([s.npu() for s in sums], [o.npu() for o in outs], 0)
        same(found, plain(sums, outs, 0)[0])
        sums[1][2] = torch.inf  # saw nothing
        found, _ = torch.ops.npu.npu_attention_update([s.npu() for s in sums], [o.npu() for o in outs], 0)
        sums[1][2] = -torch.inf
        same(found, plain(sums, outs, 0)[0])
        with pytest.raises(RuntimeError, match="no update_type 2"):
            torch.ops.npu.npu_attention_update([sums[0].npu()], [outs[0].npu()], 2)
            torch.npu.synchronize()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_ring_merges_what_it_has_with_the_next_part(self, dtype: torch.dtype) -> None:
        q, rope = torch.randn(5, 4, 16, dtype=dtype), torch.randn(5, 4, 8, dtype=dtype)
        k, k_rope = torch.randn(9, 4, 16, dtype=dtype), torch.randn(9, 4, 8, dtype=dtype)
        v, mask = torch.randn(9, 4, 16, dtype=dtype), torch.ones(512, 512, dtype=dtype).triu(1)
        sizes = {"head_num": 4, "kv_head_num": 4, "qk_scale": 0.2}
        parts = [k.npu(), k_rope.npu(), v.npu()]
        ours = [t[:5] for t in parts]
        old = [torch.cat((t[5:7], t[7:9])) for t in parts]
        query = (q.npu(), rope.npu())
        out, lse = torch_npu.atb.npu_ring_mla(
            *query, *ours, mask.npu(), torch.tensor([3, 2]).int(), **sizes, mask_type="mask_type_triu"
        )
        both, sums = torch.empty_like(out), torch.empty_like(lse)
        torch.ops.atb.npu_ring_mla.out(
            *query,
            *old,
            mask.npu(),
            torch.tensor([[3, 2], [2, 2]]).int(),
            **sizes,
            pre_out=out,
            prev_lse=lse,
            calc_type="calc_type_default",
            output=both,
            softmax_lse=sums,
        )
        full, keys = torch.cat((q, rope), -1), torch.cat((k, k_rope), -1)
        for (a, b), (c, d) in zip([(0, 3), (3, 5)], [(5, 7), (7, 9)], strict=True):
            seen = torch.cat((torch.zeros(b - a, d - c).bool(), hidden(b - a, b - a, 3)), -1)
            wanted, wanted_lse = one(
                full[a:b], torch.cat((keys[c:d], keys[a:b])), torch.cat((v[c:d], v[a:b])), 0.2, seen
            )
            same(both[a:b], wanted)
            same(sums[:, a:b], wanted_lse.t().float(), 1e-2)

    def test_matmul_add_fp32(self) -> None:
        check(
            torch_npu._npu_matmul_add_fp32,
            lambda x, w, c: [c.copy_((c.double() + x.double().t() @ w.double()).float())][1:] or None,
            torch.randn(5, 3).bfloat16(),
            torch.randn(5, 4).bfloat16(),
            torch.randn(3, 4),
            meta=False,
        )
