"""Calls of other shapes, layouts and dtypes: each is another signature, and the first ones come back."""

import torch
from torch import Tensor, nn

from ..case import Case
from ..fields import Field, normal
from .net import cycling


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return (y / y.shape[0] + torch.arange(x.shape[0], device=x.device)[:, None]).flatten()[: x.shape[0] * 2]


class Pairwise(nn.Module):
    """Works on any layout and dtype; broadcasts its second argument."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = x * 2 + y
        return z, z.sum(-1)


def transposed(field: Field) -> Field:
    return lambda g: field(g).mT


def every_other(field: Field) -> Field:
    return lambda g: field(g)[..., ::2]


LAYOUTS = (normal(4, 6), transposed(normal(6, 4)), every_other(normal(4, 12)))
HALF = normal(4, 6, dtype=torch.bfloat16)

CASES: list[Case] = [
    cycling("batch-sizes", Pooled, *((normal(n, 8),) for n in (2, 5, 1, 3)), calls=16),
    cycling("layouts", Pairwise, *((x, normal(6)) for x in LAYOUTS), calls=12),
    cycling("dtypes", Pairwise, (normal(4, 6), normal(6)), (HALF, normal(6)), (HALF, HALF), calls=12),
    cycling(
        "broadcasts",
        Pairwise,
        *((normal(4, 6), normal(*shape)) for shape in ((6,), (4, 1), (1, 6), ())),
        calls=16,
    ),
]
