"""The cases of the overhead benchmark: chains of dependent one-element ops, and calls of little work.

A case is named `op:length` (a chain) or as in FIXED (one call).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nets
import torch
from case import Case
from suite import case, normal
from torch import Tensor, nn


@dataclass(frozen=True)
class Op:
    """Maps one element to one element. `kind`: the fastest thing in ATen that a replay can call for it."""

    kind: str
    apply: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] = (1,)


INDEX = torch.zeros(1, dtype=torch.int64)
CONDITION = torch.ones(1, dtype=torch.bool)

OPS = {
    "add": Op("stub", lambda x, y: x + y),
    "mul": Op("stub", lambda x, y: x * y),
    "sigmoid": Op("stub", lambda x, y: x.sigmoid()),
    "where": Op("stub", lambda x, y: torch.where(CONDITION, x, y)),
    "cumsum": Op("out variant", lambda x, y: x.cumsum(0)),
    "gather": Op("out variant", lambda x, y: x.gather(0, INDEX)),
    "index_select": Op("out variant", lambda x, y: x.index_select(0, INDEX)),
    "mm": Op("out variant", lambda x, y: x.mm(y), (1, 1)),
    "flip": Op("boxed", lambda x, y: x.flip(0)),
}
LENGTHS = (10, 100, 1000)


class Chain(nn.Module):
    """`length` times the same op, each on the result of the one before."""

    def __init__(self, op: Op, length: int) -> None:
        super().__init__()
        self.op, self.length = op, length

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(self.length):
            x = self.op.apply(x, y)
        return x


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


FIXED: dict[str, Callable[[], Case]] = {
    "x + 1": lambda: case("x + 1", AddOne(), normal((8,))),
    "mlp": lambda: case("MLP 64-256-256-18", nets.mlp(), normal((1, 64))),
    "300 parameters": lambda: case("300 parameters", nets.ManyParameters(), normal((8,))),
}


def near_one(shape: tuple[int, ...]) -> Callable[[torch.Generator], Sequence[Tensor]]:
    """Two inputs whose powers stay clear of denormal numbers, which are slow."""
    return lambda generator: tuple(1 + torch.rand(shape, generator=generator) * 1e-3 for _ in range(2))


def build(name: str) -> Case:
    if name in FIXED:
        return FIXED[name]()
    op, length = name.split(":")
    return case(name, Chain(OPS[op], int(length)), near_one(OPS[op].shape))
