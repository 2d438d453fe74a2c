"""Makes a case of a hand-written module and its positional inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..case import Arguments, Case, generator
from ..fields import Field


def net(name: str, make: Callable[[], nn.Module], *fields: Field, **settings: Any) -> Case:
    """A case of `make()` with seeded weights, called with one argument for each field."""
    return cycling(name, make, fields, **settings)


def cycling(
    name: str, make: Callable[[], nn.Module], *turns: tuple[Field, ...], train: bool = False, **settings: Any
) -> Case:
    """As `net`, but the calls take the `turns` one after the other, for inputs of changing shapes."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return make().train(train)

    def inputs(step: int) -> Arguments:
        g = generator(name, step)
        return tuple(field(g) for field in turns[step % len(turns)]), {}

    return Case(name, "net", build, inputs, **settings)
