"""The torch.compile backend: Dynamo's graph in, a callable out. Owns the order of the steps, none of their work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.aot_compile_types import SerializableCallable
from torch._dynamo.source import GlobalSource, LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import ChainedSource

from graphmode import _C
from graphmode.devices.adapter import device_named, has_adapter
from graphmode.engines import compile_by_engine
from graphmode.integrations import resolver_of
from graphmode.options import Options, resolve
from graphmode.program.program import Program, make_program
from graphmode.runtime.frames import errors_reach_the_caller, watch_frames
from graphmode.runtime.modes import modes_of
from graphmode.runtime.outside import Step
from graphmode.runtime.region import Region

Compiled = Callable[..., Any]

watch_frames()
SerializableCallable.register(_C.Runner)


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
        EngineError: the engine asked for misses something.
    """
    errors_reach_the_caller()
    resolved = resolve(options, mode)
    first = _device_of(gm, example_inputs)
    if resolved.engine != "native" and resolved.mode != "eager":
        return compile_by_engine(gm, example_inputs, resolved, first)
    modes = modes_of(gm)
    device = first if has_adapter(first) else "cpu"  # whose graphs take none of these inputs: the calls run live
    adapter = device_named(device if resolved.device == "auto" else resolved.device)
    if modes.inference:  # tracing loses it: such a program is captured as Dynamo gave it
        program = Program(gm, not_lowered="it enters inference mode")
    else:
        table = adapter.fusions() if resolved.mode == "max-autotune" else {}
        program = make_program(gm, example_inputs, table, resolved.fuel, first)

    taken = len(gm.graph.find_nodes(op="placeholder"))

    def with_gradients(args: Sequence[Any]) -> Any:
        return gm(*args[:taken])  # Dynamo's own graph: eager's gradients

    owner = _owner(gm)

    def region_of(code: fx.GraphModule, **changed: Any) -> Region:
        return Region(code, dataclasses.replace(resolved, **changed), with_gradients, modes, device, owner)

    region = region_of(program.gm)
    region.counters.lower_seconds = program.lower_seconds
    region.counters.fused.update(program.fusions.done)
    for (rule, reason), count in program.fusions.left.items():
        region.counters.note(f"{rule} not fused: {reason}", count)
    if program.not_lowered is not None:
        region.counters.note(f"captured as Dynamo gave it, without passes: {program.not_lowered}")
    resolver = resolver_of(program.gm) if device == "cpu" else None  # on other devices those ops stay what they are
    return region.run if resolver is None else Step(region, resolver, region_of)


def _device_of(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> str:
    """The kind of device that a program is of: its inputs', or what it makes its tensors on.

    A number may come on the host, beside the device's tensors.
    """
    made = [n.meta.get("example_value") for n in gm.graph.nodes if n.op.startswith("call")]
    types = (t.device.type for t in (*example_inputs, *made) if isinstance(t, torch.Tensor))
    return next((t for t in types if t not in ("cpu", "meta")), "cpu")


def _owner(gm: fx.GraphModule) -> torch.nn.Module | None:
    """The module that the traced code found its weights in: graphs need not outlive it."""
    try:
        tx = InstructionTranslator.current_tx()
    except AttributeError:  # nothing is traced on this thread: an ahead-of-time compilation is over that already
        return None
    if tx is None:
        return None
    for node in gm.graph.find_nodes(op="placeholder"):
        source = node.meta["grapharg"].source if "grapharg" in node.meta else None
        while isinstance(source, ChainedSource):
            source = source.base
        if isinstance(source, LocalSource):
            root = tx.output.local_scope.get(source.local_name)
        elif isinstance(source, GlobalSource):
            root = tx.output.global_scope.get(source.global_name)
        else:
            continue
        if isinstance(root, torch.nn.Module):
            return root
    return None


graphmode_backend.is_graphmode = True  # type: ignore[attr-defined]  # for frames.py, which only sees the function
