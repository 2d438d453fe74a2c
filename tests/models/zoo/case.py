"""One case of the sweep: how to build an unmodified model, and what each call gives it.

A case never changes the model. What a call needs beyond arguments (a cache, a decode loop) is a driver.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Forward = Callable[..., Any]
Driver = Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]


def call_once(model: nn.Module) -> Driver:
    """The driver of most cases: one call of `forward` with the arguments of this step."""
    return lambda forward, args, kwargs: forward(*args, **kwargs)


@dataclass(frozen=True)
class Case:
    """A model and its calls.

    `inputs(step)` gives the arguments of call `step`, fresh tensors with other values at each step.
    `drive(model)` is made once per model, so a driver may keep a cache from call to call, as a server does.
    `model_class` names the class of transformers, and is empty for a hand-written net.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Arguments]
    drive: Callable[[Any], Driver] = call_once
    calls: int = 5
    inference_mode: bool = False
    model_class: str = ""

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())


def generator(name: str, step: int) -> torch.Generator:
    """The generator of one call's inputs: another stream for each case and step."""
    return torch.Generator().manual_seed(zlib.crc32(f"{name}/{step}".encode()))
