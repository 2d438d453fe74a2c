"""Nets whose results are not one tensor: mappings, dataclasses, None, views, one tensor twice."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..case import Case
from ..fields import normal
from .net import net


@dataclass
class Scores:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = []
        for layer in self.layers:
            x = layer(x).relu()
            hidden.append(x)
        scores = Scores(x, tuple(hidden))
        return {"scores": scores, "pair": Pair(x.sum(), x.mean()), "names": ["a", None, 3], "nothing": None}


class Aliased(nn.Module):
    """Gives back its input, a view of it, a view of a result, and one result twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return x, x[:, 1:], y, y.T, y, y.unsqueeze(0).expand(3, -1, -1)


class Strided(nn.Module):
    """Results that are not contiguous, have no elements, or have no dimensions; other dtypes."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = (x @ x.T).transpose(0, 1)
        return y, y[::2], x.new_empty(0, 3), x.sum(), x.argmax(1), x > 0, x.half(), x.to(torch.bfloat16)


class Constant(nn.Module):
    """Besides what it computes, gives tensors that do not depend on the input."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fresh = torch.tensor([1.0, 2.0])
        fresh += 1
        return x + self.table, self.table, fresh, torch.zeros(2)


CASES: list[Case] = [
    net("nested-outputs", Nested, normal(2, 8)),
    net("aliased-outputs", Aliased, normal(3, 4)),
    net("strided-outputs", Strided, normal(4, 6)),
    net("constant-outputs", Constant, normal(2, 6)),
]
