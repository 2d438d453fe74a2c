"""ATen ops whose kernel on the CPU is none, or keeps other things for gradients than a device does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .plain import tasks


@pytest.mark.parametrize("bias", [True, False])
def test_a_gru_cell_gives_what_it_gives_on_the_host(bias: bool) -> None:
    cell, x, h = nn.GRUCell(5, 7, bias=bias), torch.randn(3, 5), torch.randn(3, 7)
    with torch.no_grad():
        torch.testing.assert_close(cell.npu()(x.npu(), h.npu()).cpu(), cell.cpu()(x, h))


@pytest.mark.parametrize("bias", [True, False])
def test_an_lstm_cell_gives_what_it_gives_on_the_host(bias: bool) -> None:
    cell, x, h, c = nn.LSTMCell(5, 7, bias=bias), torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    with torch.no_grad():
        for got, want in zip(cell.npu()(x.npu(), (h.npu(), c.npu())), cell.cpu()(x, (h, c)), strict=True):
            torch.testing.assert_close(got.cpu(), want)


def test_the_fused_cell_is_one_task() -> None:
    gates = torch.randn(2, 12, device="npu")
    before = tasks()
    torch.ops.aten._thnn_fused_gru_cell(gates, gates, torch.randn(2, 4).npu())
    assert tasks() == before + 1


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_gives_what_it_gives_on_the_host(mode: str) -> None:
    bag, index, offsets = nn.EmbeddingBag(10, 4, mode=mode), torch.tensor([1, 5, 5, 2, 9]), torch.tensor([0, 2, 4])
    with torch.no_grad():
        torch.testing.assert_close(bag.npu()(index.npu(), offsets.npu()).cpu(), bag.cpu()(index, offsets))
