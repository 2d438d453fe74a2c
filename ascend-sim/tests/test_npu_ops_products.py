"""Products, permutations and casts under torch_npu's own names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .plain import check, same

npu = torch.ops.npu
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS)
def test_linear(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype), torch.randn(5, dtype=dtype)

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = x.double() @ weight.double().t()
        return (y if bias is None else y + bias.double()).to(x.dtype)

    check(npu.npu_linear, plain, x, weight, bias)
    check(npu.npu_linear, plain, x.t().contiguous().t(), weight)


def test_bmm() -> None:
    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    check(npu.npu_bmmV2, lambda x, y, _: (x.double() @ y.double()).float(), x, y, [])
    with pytest.raises(RuntimeError, match="output_sizes is not emulated"):
        npu.npu_bmmV2(x.npu(), y.npu(), [6, 5])


@pytest.mark.parametrize("dtype", FLOATS)
def test_transpose_batchmatmul(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 2, 8, dtype=dtype), torch.randn(2, 8, 3, dtype=dtype)
    wanted = (x.double().transpose(0, 1) @ weight.double()).transpose(0, 1).to(dtype)
    same(npu.npu_transpose_batchmatmul(x.npu(), weight.npu(), perm_x1=[1, 0, 2]), wanted)
    found = npu.npu_transpose_batchmatmul(
        x.transpose(0, 1).npu(), weight.npu(), perm_x1=[0, 1, 2], perm_x2=[0, 1, 2], perm_y=[1, 0, 2]
    )
    same(found, wanted)
    # As vllm-ascend's latent attention calls it.
    same(npu.npu_transpose_batchmatmul(x.transpose(0, 1).contiguous().npu(), weight.npu(), perm_y=(1, 0, 2)), wanted)
    with pytest.raises(RuntimeError, match="batch_split_factor is not emulated"):
        npu.npu_transpose_batchmatmul(x.npu(), weight.npu(), perm_x1=[1, 0, 2], batch_split_factor=3)


def test_transpose_and_casts() -> None:
    x = torch.randn(3, 4, 5)
    check(npu.npu_transpose, lambda x, order: x.permute(order), x, [2, 0, 1])
    check(npu.npu_dtype_cast, lambda x, dtype: x.to(dtype), x, torch.float16)
    check(npu.npu_dtype_cast_, lambda x, y: x.copy_(y), x.half(), x, meta=False)


def test_a_prefetch_is_a_task_without_values() -> None:
    weight = torch.randn(4, 5)
    check(npu.npu_prefetch, lambda *_: None, weight, None, 40, 40)
    check(npu.npu_prefetch, lambda *_: None, weight, weight, 1 << 20)
    with pytest.raises(RuntimeError, match="npu_prefetch: 8 bytes from 80 of 80"):
        npu.npu_prefetch(weight.npu(), None, 8, 80)
