"""Recurrent nets: torch's fused layers, and a cell called in a Python loop."""

import torch
from torch import Tensor, nn

from ..case import Case
from ..fields import normal
from .net import net


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        steps = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            steps.append(self.head(h))
        return torch.stack(steps, dim=1), h


class Streaming(nn.Module):
    """A state kept in a buffer from call to call, as a streaming model keeps it."""

    h: Tensor
    c: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)
        self.register_buffer("h", torch.zeros(2, 16))
        self.register_buffer("c", torch.zeros(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.cell(x, (self.h, self.c))
        self.h.copy_(h)
        self.c.copy_(c)
        return h


CASES: list[Case] = [
    net("gru", lambda: nn.GRU(8, 16, num_layers=2, batch_first=True), normal(2, 6, 8)),
    net("lstm", lambda: nn.LSTM(8, 16, bidirectional=True), normal(6, 2, 8)),
    net("gru-cell-loop", Loop, normal(2, 5, 8), normal(2, 16)),
    net("lstm-streaming", Streaming, normal(2, 8)),
]
