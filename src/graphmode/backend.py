"""The torch.compile backend: Dynamo's graph in, a callable out. Owns the order of the steps, none of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode.options import Options, resolve
from graphmode.program.program import Program, make_program
from graphmode.runtime.frames import errors_reach_the_caller, watch_frames
from graphmode.runtime.modes import modes_of
from graphmode.runtime.region import Region

Compiled = Callable[..., Any]

watch_frames()


def graphmode_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any] | Options | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compiles one of Dynamo's graphs.

    Args:
        gm: Dynamo's graph; its placeholders carry fake example values.
        example_inputs: what Dynamo will call the result with: tensors and integers.
        options: as given to `torch.compile(options=...)`; see `graphmode.Options`.
        mode: as given to `torch.compile(mode=...)`: the option of that name.

    Raises:
        OptionError: an unknown option or a bad value.
    """
    errors_reach_the_caller()
    resolved = resolve(options, mode)
    modes = modes_of(gm)
    # Tracing loses inference mode: such a program is captured as Dynamo gave it.
    program = (
        Program(gm, not_lowered="it enters inference mode") if modes.inference else make_program(gm, example_inputs)
    )

    def with_gradients(args: Sequence[Any]) -> Any:
        return gm(*args)  # Dynamo's own graph: eager's gradients

    device = next((a.device.type for a in example_inputs if isinstance(a, torch.Tensor)), "cpu")
    region = Region(program.gm, resolved, with_gradients, modes, device)
    region.counters.lower_seconds = program.lower_seconds
    if program.not_lowered is not None:
        region.counters.notes[f"captured as Dynamo gave it, without passes: {program.not_lowered}"] = 1
    return region.run


graphmode_backend.is_graphmode = True  # type: ignore[attr-defined]  # for frames.py, which only sees the function
