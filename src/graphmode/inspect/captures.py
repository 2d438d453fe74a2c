"""One record in the log per capture: what was captured, of what size, what it holds and what it took.

The logger is `graphmode` and has no handler of its own: an application, or vLLM's plug-in, decides where it goes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.fx as fx

if TYPE_CHECKING:
    from graphmode.devices.adapter import GraphBytes

log = logging.getLogger("graphmode")


@dataclass(frozen=True)
class Capture:
    """One capture, as the log's argument and, printed, as its line."""

    program: int  # number of the region
    model: str | None  # class of the module whose graphs these are, where it is known
    sizes: tuple[int, ...]  # what varies from call to call, at this one; empty for a program of one size
    bytes: GraphBytes
    seconds: float

    def __str__(self) -> str:
        what = f"program {self.program}" if self.model is None else f"{self.model} (program {self.program})"
        sizes = ", ".join(map(str, self.sizes)) or "its only one"
        return (
            f"captured {what}, size {sizes}: {self.bytes.arena:,} bytes of the shared arena, "
            f"{self.bytes.fixed:,} of constants, {self.seconds * 1e3:.1f} ms"
        )


def log_capture(
    program: int, gm: fx.GraphModule, owner: object | None, args: Sequence[Any], held: GraphBytes, seconds: float
) -> None:
    """Writes one record, at level INFO.

    Args:
        program: the region's number.
        gm: its program.
        owner: the module that owns the weights, if any.
        args: those of the call that was captured; where the program has symbolic sizes they are integers among them.
        held: the graph's memory.
        seconds: from the start of the capture until the graph was ready.
    """
    if not log.isEnabledFor(logging.INFO):
        return
    places = gm.graph.find_nodes(op="placeholder")
    sizes = dict.fromkeys(
        int(a) for n, a in zip(places, args, strict=False) if isinstance(n.meta.get("val"), torch.SymInt)
    )
    model = None if owner is None else type(owner).__name__
    log.info("%s", Capture(program, model, tuple(sizes), held, seconds))
