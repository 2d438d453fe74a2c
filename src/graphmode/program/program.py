"""A program: the ATen-level straight-line code of one compiled region, and the passes it went through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.fx as fx

from graphmode.fusion.fuse import Fusions, Table, fuse
from graphmode.program.dead_code import remove_dead_code
from graphmode.program.lines import line_of
from graphmode.program.lower import LoweringError, lower
from graphmode.program.no_ops import remove_no_ops
from graphmode.program.scalar_operands import use_scalar_tensors
from graphmode.program.single_cat import replace_single_cats
from graphmode.program.written_arguments import use_written_arguments

Pass = Callable[[fx.GraphModule], int]
_TIDYING: tuple[Pass, ...] = (use_written_arguments, remove_no_ops, replace_single_cats)
_LAST: tuple[Pass, ...] = (use_scalar_tensors, remove_dead_code)


@dataclass
class PassRun:
    """What a pass did."""

    name: str
    changed: int
    seconds: float


@dataclass
class Program:
    """Callable with the region's inputs; prints as Python with the user's source lines."""

    gm: fx.GraphModule
    passes: list[PassRun] = field(default_factory=list)
    fusions: Fusions = field(default_factory=Fusions)
    not_lowered: str | None = None  # why the code is Dynamo's graph as it came
    lower_seconds: float = 0.0

    def __str__(self) -> str:
        lines, last = [], ""
        (code,) = [self.gm.print_readable(print_output=False)]
        for node in self.gm.graph.nodes:
            where = line_of(node)
            if node.op == "call_function":
                if where and where != last:
                    lines.append(f"# {where}")
                    last = where
                lines.append(f"{node.format_node()}")
        return "\n".join(lines) if lines else code


def make_program(gm: fx.GraphModule, example_inputs: Sequence[Any], table: Table, fuel: int, device: str) -> Program:
    """Lowers Dynamo's graph and runs the passes, in order.

    Args:
        gm: Dynamo's graph.
        example_inputs: what Dynamo gave with it.
        table: the device's fused calls; empty where eager's kernels are asked for.
        fuel: the most groups of calls that may become one.
        device: the kind of device that the table is of.
    """
    start = time.perf_counter()
    try:
        lowered = lower(gm, example_inputs)
    except LoweringError as error:
        return Program(gm, not_lowered=str(error), lower_seconds=time.perf_counter() - start)
    program = Program(lowered)

    def fuse_calls(gm: fx.GraphModule) -> int:
        program.fusions = fuse(gm, table, fuel, device)
        return program.fusions.done.total()

    for run in (*_TIDYING, *([fuse_calls] if table else []), *_LAST):
        began = time.perf_counter()
        changed = run(lowered)
        program.passes.append(PassRun(run.__name__, changed, time.perf_counter() - began))
    lowered.graph.lint()
    lowered.recompile()
    program.lower_seconds = time.perf_counter() - start
    return program
