"""Writing into caches against loops over tokens."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from torch import Tensor

from .plain import check

npu = torch.ops.npu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def write(rows: Tensor, cache: Tensor, slots: Tensor) -> None:
    for row, slot in zip(rows, slots.tolist(), strict=True):
        if slot >= 0:
            cache[slot // cache.shape[1], slot % cache.shape[1]] = row


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
@pytest.mark.parametrize("slots", [torch.int32, torch.int64])
def test_rows_go_to_their_slots_and_none_where_there_is_none(dtype: torch.dtype, slots: torch.dtype) -> None:
    key, value = torch.randn(4, 2, 8).mul(9).to(dtype), torch.randn(4, 2, 6).mul(9).to(dtype)
    keys, values = torch.zeros(3, 4, 2, 8, dtype=dtype), torch.zeros(3, 4, 2, 6, dtype=dtype)
    where = torch.tensor([11, -1, 0, 5], dtype=slots)

    def plain(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, where: Tensor, **_: object) -> None:
        write(key, keys, where)
        write(value, values, where)

    check(torch_npu._npu_reshape_and_cache, plain, key, value, keys, values, where, meta=False)
    check(npu.npu_scatter_pa_kv_cache, plain, key, value, keys, values, where, cache_mode="Norm")
    check(torch_npu._npu_reshape_and_cache_siso, lambda k, c, w: write(k, c, w), key, keys, where, meta=False)


def test_rows_of_a_strided_projection_go_into_a_part_of_a_cache() -> None:
    qkv, caches = torch.randn(3, 48), torch.zeros(2, 3, 4, 2, 8)
    on_npu, given = caches.npu(), qkv.npu()
    where = torch.tensor([0, 9, 4], dtype=torch.int32)
    key, value = (given[:, a : a + 16].view(3, 2, 8) for a in (16, 32))
    torch_npu._npu_reshape_and_cache(key, value, on_npu[0], on_npu[1], where.npu())
    write(qkv[:, 16:32].view(3, 2, 8), caches[0], where)
    write(qkv[:, 32:].view(3, 2, 8), caches[1], where)
    assert torch.equal(on_npu.cpu(), caches)


def test_a_cache_in_the_order_of_nz() -> None:
    key, where = torch.randn(2, 4, 8), torch.tensor([6, 1], dtype=torch.int32)
    cache = torch.zeros(2, 4 * 8 // 16, 4, 16)

    def plain(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, where: Tensor, **_: object) -> None:
        for rows, cache in ((key, keys), (value, values)):
            for row, slot in zip(rows, where.tolist(), strict=True):
                cache[slot // 4, :, slot % 4] = row.reshape(2, 16)

    check(npu.npu_scatter_pa_kv_cache, plain, key, key + 1, cache, cache.clone(), where, cache_mode="PA_NZ")


def test_slots_and_shapes_that_do_not_fit() -> None:
    cache, row = torch.zeros(2, 4, 2, 8, device="npu"), torch.ones(1, 2, 8, device="npu")
    slot = torch.zeros(1, dtype=torch.int32, device="npu")
    with pytest.raises(RuntimeError, match="1 rows for 2 slots"):
        torch_npu._npu_reshape_and_cache(row, row, cache, cache, torch.zeros(2, dtype=torch.int32, device="npu"))
    with pytest.raises(RuntimeError, match="do not fit a cache"):
        torch_npu._npu_reshape_and_cache(row[:, :1], row, cache, cache, slot)
    with pytest.raises(RuntimeError, match="the cache is Float"):
        torch_npu._npu_reshape_and_cache(row.half(), row, cache, cache, slot)
    with pytest.raises(RuntimeError, match="compresses"):
        npu.npu_scatter_pa_kv_cache(row, row, cache, cache, slot, seq_lens=slot)
    torch_npu._npu_reshape_and_cache(row, row, cache, cache, slot + 8)
    with pytest.raises(RuntimeError, match="slot 8 of a cache of 2 blocks of 4"):
        torch.npu.synchronize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_scatter_nd_update(dtype: torch.dtype) -> None:
    x, updates = torch.randn(4, 5, 6).mul(5).to(dtype), torch.randn(2, 6).mul(5).to(dtype)
    indices = torch.tensor([[0, 4], [3, 1]])

    def plain_(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        for place, row in zip(indices.tolist(), updates, strict=True):
            x[tuple(place)] = row
        return x

    check(npu.npu_scatter_nd_update_, plain_, x, indices, updates)
    check(npu.npu_scatter_nd_update_, plain_, x, indices.int(), updates)
    check(
        npu.npu_scatter_nd_update,
        lambda x, i, u: plain_(x.clone(), i, u),
        x.permute(1, 0, 2).contiguous().transpose(0, 1),
        indices,
        updates,
    )
    with pytest.raises(RuntimeError, match="npu_scatter_nd_update: updates are"):
        npu.npu_scatter_nd_update_(x.npu(), indices.npu(), updates[:1].npu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_scatter_update_writes_where_the_indices_begin(dtype: torch.dtype) -> None:
    x, updates = torch.randn(3, 2, 6, 4).mul(9).to(dtype), torch.randn(2, 2, 1, 4).mul(9).to(dtype)

    def plain_(x: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Tensor:
        for i, place in enumerate(indices.tolist()):
            row, first = place if isinstance(place, list) else (i, place)
            x[row, :, first : first + 1] = updates[i]
        return x

    for indices in (torch.tensor([4, 1]), torch.tensor([[2, 5], [0, 0]], dtype=torch.int32)):
        check(npu.scatter_update_, plain_, x, indices, updates, -2)
        check(npu.scatter_update, lambda x, i, u, a: plain_(x.clone(), i, u, a), x, indices, updates, 2)
    with pytest.raises(RuntimeError, match="scatter_update: updates"):
        npu.scatter_update_(x.npu(), torch.tensor([4, 1]).npu(), updates[:1].npu(), 2)


def test_formats_are_labels() -> None:
    x = torch.randn(32, 32).half().npu()
    cast = torch_npu.npu_format_cast(x, 29)
    assert torch.equal(cast.cpu(), x.cpu()) and isinstance(torch_npu.get_npu_format(cast), int)
