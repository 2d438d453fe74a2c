"""The torch.compile backend: Dynamo's graph in, a callable out. Owns the order of the steps, none of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.fx as fx

from graphmode.options import Options, resolve
from graphmode.program.program import Program, make_program
from graphmode.runtime.modes import modes_of
from graphmode.runtime.region import Region

Compiled = Callable[..., Any]


def graphmode_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any] | Options | None = None,
    **_: Any,
) -> Compiled:
    """Compiles one of Dynamo's graphs.

    Args:
        gm: Dynamo's graph; its placeholders carry fake example values.
        example_inputs: what Dynamo will call the result with: tensors and integers.
        options: as given to `torch.compile(options=...)`; see `graphmode.Options`.

    Raises:
        OptionError: an unknown option or a bad value.
    """
    resolved = resolve(options)
    modes = modes_of(gm)
    # Tracing loses inference mode: such a program is captured as Dynamo gave it.
    program = Program(gm, not_lowered="it enters inference mode") if modes.inference else make_program(gm)

    def with_gradients(args: Sequence[Any]) -> Any:
        return gm(*args)  # Dynamo's own graph: eager's gradients

    region = Region(program.gm, resolved, with_gradients, modes)
    region.counters.lower_seconds = program.lower_seconds
    return region.run
