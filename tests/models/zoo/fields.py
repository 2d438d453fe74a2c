"""The tensors models are fed: each function returns a field, which draws one argument from a generator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from .tiny import IMAGE, VOCAB

Field = Callable[[Generator], Any]
FIRST_TOKEN = 5


def tokens(*shape: int, low: int = FIRST_TOKEN, high: int = VOCAB) -> Field:
    return lambda g: torch.randint(low, high, shape, generator=g)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Field:
    return lambda g: torch.randn(shape, generator=g).to(dtype)


def uniform(*shape: int) -> Field:
    return lambda g: torch.rand(shape, generator=g)


def uniform_boxes(batch: int, length: int, high: int = 64) -> Field:
    """Boxes (left, top, right, bottom), as document models want them, with each right past its left."""

    def draw(g: Generator) -> Tensor:
        corners = torch.randint(0, high // 2, (batch, length, 2), generator=g)
        return torch.cat([corners, corners + torch.randint(1, high // 2, corners.shape, generator=g)], dim=-1)

    return draw


def image(batch: int = 1, size: int = IMAGE, channels: int = 3) -> Field:
    return normal(batch, channels, size, size)


def waveform(samples: int, batch: int = 2) -> Field:
    return normal(batch, samples)


def right_padding(batch: int, length: int) -> Field:
    """A 0/1 mask whose later rows end in one to three padded places, another number at each call."""

    def draw(g: Generator) -> Tensor:
        padded = torch.randint(1, 4, (batch, 1), generator=g)
        padded[0] = 0
        return (torch.arange(length) < length - padded).long()

    return draw


def left_padding(batch: int, length: int) -> Field:
    """The mask a decoder is given: padding comes first, so that the last place of each row is a token."""
    draw = right_padding(batch, length)
    return lambda g: draw(g).flip(-1)


def fixed(value: Any) -> Field:
    """An argument that is the same at each call; tensors are cloned, so that no call can change the next."""
    return lambda g: value.clone() if isinstance(value, Tensor) else value


def placed(field: Field, token: int, start: int, count: int) -> Field:
    """`field`'s tokens with `count` places from `start` on set to `token`, which image features fill."""

    def draw(g: Generator) -> Tensor:
        ids = field(g)
        ids[:, start : start + count] = token
        return ids

    return draw
