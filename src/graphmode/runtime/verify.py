"""Option `verify`: a new graph is replayed once beside eager, on scratch copies of what it writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from graphmode.devices.adapter import DeviceGraph
from graphmode.runtime.slots import Slots


def difference(
    graph: DeviceGraph,
    live: Callable[[Sequence[Any]], tuple[Any, ...]],
    args: Sequence[Any],
    written: Collection[int],
) -> str | None:
    """What a replay does otherwise than eager, bit for bit; None when nothing.

    Args:
        graph: instantiated.
        live: runs the program.
        args: the call's arguments; they are left as they are, and so are torch's generators.
        written: positions of arguments that the program writes.
    """
    state = torch.get_rng_state()
    eager, mine = Slots(args, written), Slots(args, written)
    try:
        want = [r for r in live(eager.args) if isinstance(r, torch.Tensor)]
        torch.set_rng_state(state)
        got = graph.replay([a for a in mine.args if isinstance(a, torch.Tensor)])
    finally:
        torch.set_rng_state(state)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if not _same(a, b):
            return f"result {i} of a replay differs from eager's"
    for i in sorted(written):
        if not _same(mine.args[i], eager.args[i]):
            return f"what a replay writes to input {i} differs from eager's"
    return None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    return torch.equal(_values(a), _values(b))


def _values(tensor: torch.Tensor) -> torch.Tensor:
    # As bytes: NaNs are equal to themselves, and -0.0 is not 0.0.
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
