"""What a driver is: something that runs a case's program call by call through one path of the product.

Owns the protocols between the check and the drivers; it holds no code of any path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from .samples import Case


@dataclass
class Tally:
    """What was done for one case: graphs handed to the product, and what the product counted."""

    graphs: int = 0
    replays: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    dynamo_reasons: Counter[str] = field(default_factory=Counter)


class Session(Protocol):
    """One case under way.

    `flat_outputs`: the path returns the flat list of tensors, not the program's own structure.
    `keeps_outputs`: an output never changes once it was handed out (C3; a raw graph overwrites its own).
    """

    flat_outputs: bool
    keeps_outputs: bool

    def call(self, tensors: list[Tensor]) -> tuple[object, list[Tensor]]:
        """Run the next call on these tensors; returns its result, and the inputs as the call left them."""
        ...

    def tally(self) -> Tally: ...

    def close(self) -> None: ...


class Driver(Protocol):
    """One path of the product. `grad_mode`: gradients are switched on, though no input needs one."""

    name: str
    grad_mode: bool

    def start(self, case: Case) -> Session: ...


class Refused(Exception):
    """The path said, with a reason, that it cannot capture this program: an answer, not a failure."""
