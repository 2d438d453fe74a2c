"""Where and what the inputs, weights and results of a static graph are: what must not change between its replays.

Owns the comparison and the walk through nested containers, no decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._library.opaque_object import is_opaque_type
from vllm.sequence import IntermediateTensors

_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)


class NoPlace(Exception):
    """An input can't be compared with the capture's; the message says which kind."""


@dataclass(frozen=True)
class Place:
    """What has to be as it was at the capture. Tensors: address, sizes, strides, dtype; anything else: the value."""

    modes: tuple[int, ...]
    weights: bytes  # of `_C.HeldPlaces`
    inputs: dict[int | str, Any]

    def difference(self, now: Place) -> str:
        """Why a graph captured here can't serve a call there: of few different texts, since they are counted."""
        for name, then in self.inputs.items():
            found = now.inputs.get(name)
            if found != then:
                return f"input {name} is not where, or not what, it was when its graph was captured"
        if self.weights != now.weights:
            return "a weight or buffer of the model was moved after the capture"
        if self.modes != now.modes:
            return "a mode of torch (gradients, inference, autocast, threads) is another one than at the capture"
        return "the call has other inputs than the one that was captured"


def where(value: Any) -> Any:
    """What of one input must be as it was at the capture."""
    if isinstance(value, torch.Tensor):
        try:
            at = value.data_ptr()
        except RuntimeError:
            at = 0
        if at == 0 and value.numel():
            raise NoPlace(f"an input is a {type(value).__name__} of layout {value.layout}, which has no one address")
        return at, value.shape, value.stride(), value.dtype, value.requires_grad
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, IntermediateTensors):
        value = value.tensors
    if isinstance(value, dict):
        return kind, {name: where(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return kind, [where(part) for part in value]
    if is_opaque_type(kind):
        return kind, value
    raise NoPlace(f"an input is a {kind.__name__}, and what it holds can't be compared with that of the capture")


def each_tensor(value: Any, do: Callable[[torch.Tensor], Any]) -> Any:
    """`do` for every tensor in a result, in new containers, so that nobody changes those of the capture."""
    if isinstance(value, torch.Tensor):
        return do(value)
    if isinstance(value, IntermediateTensors):
        return type(value)({name: each_tensor(part, do) for name, part in value.tensors.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(part, do) for part in value))
    if type(value) in (list, tuple):
        return type(value)(each_tensor(part, do) for part in value)
    if type(value) is dict:
        return {name: each_tensor(part, do) for name, part in value.items()}
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    each_tensor(value, found.append)
    return found


def weights_of(runnable: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a module holds its parameters and buffers; nothing for another callable, whose weights are its inputs."""
    inner = runnable.unwrap() if hasattr(runnable, "unwrap") else runnable
    for module in inner.modules() if isinstance(inner, torch.nn.Module) else ():
        for own in (module._parameters, module._buffers):
            yield from ((own, name) for name in own)
