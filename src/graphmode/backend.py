"""The torch.compile backend: Dynamo's graph in, a callable out. Owns the order of the steps, none of their work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode.options import Options, resolve
from graphmode.program.breaks import find_breaks, split
from graphmode.program.lines import line_of
from graphmode.program.program import Program, make_program
from graphmode.runtime.region import Region

Compiled = Callable[..., Any]


class CompiledGraph:
    """What the backend returns to Dynamo: calls with gradients go to Dynamo's own graph, others to the regions."""

    def __init__(self, original: fx.GraphModule, program: Program, options: Options) -> None:
        self.original = original
        self.program = program
        self.options = options
        breaks = find_breaks(program.gm)
        self.breaks = [(str(n.target), reason, line_of(n)) for n, reason in breaks.items()]
        self.regions: list[Region] = []
        if breaks:
            self._stretches = self._split(breaks)
        else:
            self.regions.append(Region(program.gm, options, self))
        self.first = self.regions[0] if self.regions else Region(program.gm, options, self)
        self.first.counters.lower_seconds += program.lower_seconds

    def _split(self, breaks: dict[fx.Node, str]) -> fx.GraphModule:
        parent, names = split(self.program.gm, breaks)
        for name in names:
            region = Region(parent.get_submodule(name), self.options, self)
            self.regions.append(region)
            setattr(parent, name, _Stretch(region))
        return parent

    @property
    def entry(self) -> Compiled:
        """What Dynamo calls: the native runner itself where nothing runs live."""
        return self._with_breaks if self.breaks else self.first.run

    def _with_breaks(self, *args: Any) -> Any:
        if needs_gradients(args):
            return self.with_gradients(args)
        for op, reason, line in self.breaks:
            self.first.fall_back(reason, op, line)
            self.first.counters.breaks += 1
        with torch.no_grad():
            return self._stretches(*args)

    def with_gradients(self, args: Sequence[Any]) -> Any:
        """Eager's own gradients, by Dynamo's own graph."""
        self.first.fall_back("an input needs gradients: the call runs under autograd, outside graphs")
        self.first.counters.live_calls += 1
        return self.original(*args)


class _Stretch(torch.nn.Module):
    """A region in a submodule's place, between two breaks."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.region = region

    def forward(self, *args: Any) -> Any:
        results = self.region.run(*args)
        return results[0] if self.region.single_result else results


def needs_gradients(args: Sequence[Any]) -> bool:
    """Whether autograd would record this call."""
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


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
    start = time.perf_counter()
    program = make_program(gm)
    compiled = CompiledGraph(gm, program, resolved)
    compiled.first.counters.lower_seconds = time.perf_counter() - start
    return compiled.entry
