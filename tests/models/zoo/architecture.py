"""Turns a row of a table (a transformers class, sizes that differ from `tiny`'s, its inputs) into cases.

The class is used as it is: built from its own configuration class, in evaluation mode, with seeded weights.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from .case import Arguments, Case, Driver, call_once, generator
from .fields import Field
from .tiny import tiny


def builder(model_class: str, dtype: torch.dtype, sizes: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What builds `transformers.<model_class>`; importing the class is part of it, as it takes a while."""

    def build() -> nn.Module:
        kind = getattr(transformers, model_class)
        torch.manual_seed(zlib.crc32(model_class.encode()))
        model: nn.Module = kind(tiny(kind.config_class, **sizes))
        return model.to(dtype).eval()

    return build


def drawn(name: str, turns: Sequence[Mapping[str, Field]]) -> Callable[[int], Arguments]:
    """Keyword arguments drawn from one of `turns` after the other, other values at each step."""

    def inputs(step: int) -> Arguments:
        g = generator(name, step)
        return (), {key: field(g) for key, field in turns[step % len(turns)].items()}

    return inputs


def architecture(
    name: str,
    family: str,
    model_class: str,
    *turns: Mapping[str, Field],
    drive: Callable[[Any], Driver] = call_once,
    dtype: torch.dtype = torch.float32,
    calls: int = 5,
    inference_mode: bool = False,
    **sizes: Any,
) -> Case:
    """A case of one transformers class. `name` starts with the `model_type`; `sizes` go to its configuration.

    The fields of a call are those of one of `turns` after the other: more than one makes its shapes change.
    """
    return Case(
        name,
        family,
        builder(model_class, dtype, sizes),
        drawn(name, turns),
        drive,
        calls=calls,
        inference_mode=inference_mode,
        model_class=model_class,
    )
