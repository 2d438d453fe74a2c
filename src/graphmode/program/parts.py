"""A program cut at its breaks: stretches that can be graphs, and the calls between them that run live.

Owns the cut and the order of the parts; who runs a stretch, and how, is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from graphmode.program.effects import PURE_PYTHON, leave_mode, switches_mode


@dataclass
class Stretch:
    """Straight-line code between two breaks. Takes the values of `inputs`, gives those of `outputs`."""

    gm: fx.GraphModule
    inputs: list[fx.Node]
    outputs: list[fx.Node]

    def computes(self) -> bool:
        """Whether there is anything in it worth a graph."""
        calls = (n for n in self.gm.graph.nodes if n.op in ("call_function", "call_method", "call_module"))
        return any(n.target not in PURE_PYTHON for n in calls)


@dataclass
class Live:
    """A call that runs live, every time."""

    node: fx.Node


@dataclass
class Parts:
    """The parts in order; calling it runs them. `run_stretch` holds who runs each stretch."""

    gm: fx.GraphModule
    parts: list[Stretch | Live]
    run_stretch: list[Callable[..., Sequence[Any]] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._placeholders = self.gm.graph.find_nodes(op="placeholder")
        (output,) = self.gm.graph.find_nodes(op="output")
        self._output = output.args[0]
        last: dict[fx.Node, int] = {}
        for i, part in enumerate(self.parts):
            for node in part.inputs if isinstance(part, Stretch) else part.node.all_input_nodes:
                last[node] = i
        kept = set(output.all_input_nodes)
        self._dead: list[list[fx.Node]] = [[] for _ in self.parts]  # values whose last use a part is
        for node, i in last.items():
            if node not in kept:
                self._dead[i].append(node)

    def __call__(self, *args: Any) -> Any:
        values: dict[fx.Node, Any] = dict(zip(self._placeholders, args, strict=True))
        del args
        grad = torch.is_grad_enabled()
        try:
            self._run(values)
        except BaseException:  # leave the modes that were entered, as the user's `with` would
            for part in reversed(self.parts):
                if isinstance(part, Live) and part.node in values:
                    leave_mode(part.node, values[part.node])
            torch._C._set_grad_enabled(grad)
            raise
        return self._load(self._output, values)

    def _run(self, values: dict[fx.Node, Any]) -> None:
        for part, run, dead in zip(self.parts, self.run_stretch, self._dead, strict=True):
            if isinstance(part, Stretch):
                assert run is not None
                results = run(*[values[n] for n in part.inputs])
                values.update(zip(part.outputs, results, strict=True))
            else:
                values[part.node] = self._call(part.node, values)
            for node in dead:
                values.pop(node, None)

    def _load(self, argument: Any, values: Mapping[fx.Node, Any]) -> Any:
        return fx.map_arg(argument, lambda n: self._attribute(n) if n.op == "get_attr" else values[n])

    def _attribute(self, node: fx.Node) -> Any:
        value: Any = self.gm
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = self._load(node.args, values), self._load(node.kwargs, values)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.gm.get_submodule(str(node.target))(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def cut(gm: fx.GraphModule, breaks: Mapping[fx.Node, str]) -> Parts:
    """Cuts a program at its breaks. Nodes keep their order, so that effects do too."""
    groups: list[list[fx.Node] | fx.Node] = []
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node in breaks or switches_mode(node):  # a replay would not set the mode for what comes after it
            groups.append(node)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(node)
        else:
            groups.append([node])
    return Parts(gm, [_stretch(gm, g) if isinstance(g, list) else Live(g) for g in groups])


def _stretch(gm: fx.GraphModule, nodes: list[fx.Node]) -> Stretch:
    inside = set(nodes)
    inputs = list(
        dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside and n.op != "get_attr")
    )
    outputs = [n for n in nodes if any(user not in inside for user in n.users)]
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copied[node] = graph.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copied:
                copied[source] = graph.node_copy(source)
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(tuple(copied[n] for n in outputs))
    return Stretch(fx.GraphModule(gm, graph), inputs, outputs)


def constants(gm: fx.GraphModule) -> list[torch.Tensor]:
    """Tensors that the program holds itself."""
    own = [v for v in vars(gm).values() if isinstance(v, torch.Tensor)]
    return [*own, *gm.parameters(), *gm.buffers()]
