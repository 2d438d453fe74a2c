"""Filters of logits against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .plain import check

npu = torch.ops.npu


def top_k_top_p(logits: Tensor, p: Tensor | None, k: Tensor | None) -> Tensor:
    out = logits.clone()
    for i, row in enumerate(out):
        if k is not None:
            row[row < row.sort(descending=True).values[int(k[i]) - 1]] = float("-inf")
        if p is not None:
            ascending = row.double().argsort(stable=True)
            below = row.double()[ascending].softmax(0).cumsum(0) <= 1 - p[i].double()
            below[-1] = False
            row[ascending[below]] = float("-inf")
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_top_k_top_p(dtype: torch.dtype) -> None:
    logits = (torch.arange(96).view(3, 32) * 37 % 61 / 7).to(dtype)
    p, k = torch.tensor([0.55, 1.0, 0.01], dtype=dtype), torch.tensor([5, 32, 1], dtype=torch.int32)
    plain = lambda logits, p, k: top_k_top_p(logits, p, k)  # noqa: E731
    for given in ((None, k), (p, None), (p, k)):
        found = npu.npu_top_k_top_p(logits.npu(), *[None if g is None else g.npu() for g in given])
        assert torch.equal(found.cpu(), plain(logits, *given))
    check(npu.npu_top_k_top_p, plain, logits, None, k)
    check(npu.npu_top_k_top_p, plain, logits.t().contiguous().t(), None, k)


def test_values_that_equal_the_kth_stay() -> None:
    found = npu.npu_top_k_top_p(
        torch.tensor([[1.0, 2.0, 2.0, 0.0]], device="npu"), None, torch.tensor([1], dtype=torch.int32, device="npu")
    )
    assert found.tolist() == [[float("-inf"), 2.0, 2.0, float("-inf")]]


def test_one_limit_for_each_row() -> None:
    with pytest.raises(RuntimeError, match="one limit for each row"):
        npu.npu_top_k_top_p(torch.ones(2, 4, device="npu"), None, torch.ones(3, dtype=torch.int32, device="npu"))
