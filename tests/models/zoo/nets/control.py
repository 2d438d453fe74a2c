"""Nets whose work depends on values: routing, reading a number, masks that choose how much there is."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..case import Case
from ..fields import normal, uniform
from .net import net


class Routed(nn.Module):
    """A mixture of experts that gathers each expert's tokens: as many as chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, dim=-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            token, place = torch.nonzero(chosen == index, as_tuple=True)
            y.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return y


class Branching(nn.Module):
    """Reads a number from a tensor and goes one way or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 0:
            return self.large(x).relu()
        return self.small(x).tanh() * float(x.abs().max())


class EarlyExit(nn.Module):
    """Repeats a layer until the values are small: the number of rounds is in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        rounds = 0
        while rounds < 4 and bool(x.norm() > 1.5):
            x = self.layer(x) * 0.7
            rounds += 1
        return x, rounds


class Masked(nn.Module):
    """Boolean masks: read, written through, and one whose result has a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        chosen = y[y > 0]
        y[y < -0.5] = 0.0
        return y, chosen.cumsum(0)


class Ranked(nn.Module):
    """where, cumsum, sort, topk, gather, scatter: nucleus filtering without sampling."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ordered, order = logits.sort(dim=-1, descending=True)
        cumulated = ordered.softmax(-1).cumsum(-1)
        kept = torch.where(cumulated - ordered.softmax(-1) > 0.9, float("-inf"), ordered)
        filtered = torch.full_like(logits, float("-inf")).scatter(-1, order, kept)
        best = filtered.topk(3, dim=-1)
        return filtered, best.values, F.one_hot(best.indices, logits.shape[-1]).sum(1)


class Unique(nn.Module):
    """Results whose number is in the data: unique, repeat_interleave, a split by numbers in a tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values, counts = torch.unique((x * 3).long(), return_counts=True)
        parts = torch.split(torch.repeat_interleave(values, counts), counts.tolist())
        return values, counts, *[part.sum() for part in parts[:2]]


CASES: list[Case] = [
    net("routed-experts", Routed, normal(12, 16)),
    net("item-branch", Branching, normal(2, 8), calls=9),
    net("early-exit", EarlyExit, normal(2, 8), calls=9),
    net("boolean-mask", Masked, normal(4, 8)),
    net("ranked", Ranked, normal(3, 20)),
    net("unique", Unique, uniform(24)),
]
