"""Integers of a program that reach only arguments which a device can update in captured calls: attention's lengths.

Owns the proof, by the program's edges alone, and what those arguments are as a function of the integers. Whatever is
not certain is left to the signature, where an integer selects a graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from graphmode.program.effects import op_name

Lists = Mapping[str, Sequence[int] | torch.Tensor]  # arguments of one call, by name
Updatable = Mapping[str, tuple[str, ...]]  # by the op's name: keyword arguments, lists of integers, that are updated

_ARITHMETIC = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.mod,
    operator.neg,
    torch.sym_max,
    torch.sym_min,
}


@dataclass(frozen=True)
class Updates:
    """What replays of one program's graphs are told."""

    told: tuple[int, ...] = ()  # positions of the integers that select no graph
    calls: Mapping[fx.Node, tuple[str, ...]] = field(default_factory=dict)  # in order, with the arguments updated
    _fixed: tuple[int, ...] = ()  # positions of integers that select a graph, and that the arguments need as well
    _lists: Callable[..., Any] | None = None  # of the fixed integers and then the told ones

    def told_of(self, args: Sequence[Any]) -> tuple[int, ...]:
        """The integers of a call that its replay is told."""
        return tuple(args[i] for i in self.told)

    def lists(self, args: Sequence[Any]) -> Callable[..., Sequence[Lists]]:
        """What each call's arguments are, as a function of what a replay is told; for the graph of these `args`."""
        fixed, of = [args[i] for i in self._fixed], self._lists
        assert of is not None
        return lambda *told: of(*fixed, *told)


NONE = Updates()


def find_updates(gm: fx.GraphModule, updatable: Updatable) -> Updates:
    """What of a program a device can update, which says so by `updatable`."""
    calls = _calls(gm, updatable) if updatable else {}
    if not calls:
        return NONE
    free = _only_updated(gm, calls)
    inputs = gm.graph.find_nodes(op="placeholder")
    told = [n for n in inputs if n in free and n.users]
    calls = {node: names for node, names in calls.items() if not _sources(node, names).isdisjoint(told)}
    if not calls:
        return NONE
    needed = {source for node, names in calls.items() for source in _sources(node, names)}
    fixed = [n for n in inputs if n in needed and n not in told]
    position = {n: i for i, n in enumerate(inputs)}
    return Updates(
        tuple(position[n] for n in told),
        calls,
        tuple(position[n] for n in fixed),
        _function(gm, [*fixed, *told], needed, calls),
    )


def _calls(gm: fx.GraphModule, updatable: Updatable) -> dict[fx.Node, tuple[str, ...]]:
    """Calls that can be updated, each with those of its arguments that integers alone decide on."""
    known = _computable(gm)
    found = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            names = updatable.get(op_name(node.target), ())
            found[node] = tuple(name for name in names if _is_list_of(node.kwargs.get(name), known))
    return {node: names for node, names in found.items() if names}


def _computable(gm: fx.GraphModule) -> set[fx.Node]:
    """Integers among the inputs, and what is computed of them and of constants."""
    known: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            is_known = isinstance(node.meta.get("val", node.meta.get("example_value")), (int, torch.SymInt))
        else:
            is_known = node.target in _ARITHMETIC and not node.kwargs and all(_is_one_of(a, known) for a in node.args)
        if is_known and node.op in ("placeholder", "call_function"):
            known.add(node)
    return known


def _is_one_of(value: Any, known: set[fx.Node]) -> bool:
    return value in known if isinstance(value, fx.Node) else type(value) is int


def _is_list_of(value: Any, known: set[fx.Node]) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_one_of(v, known) for v in value)


def _only_updated(gm: fx.GraphModule, calls: Mapping[fx.Node, tuple[str, ...]]) -> set[fx.Node]:
    """What stands, itself and in all that is computed of it, nowhere but in arguments that are updated."""
    free: set[fx.Node] = set()
    elsewhere: set[fx.Node] = set()  # stands in another argument
    for node in reversed(gm.graph.nodes):
        if node in calls:
            elsewhere.update(_nodes((node.args, {k: v for k, v in node.kwargs.items() if k not in calls[node]})))
        is_integer = node.op == "placeholder" or (node.op == "call_function" and node.target in _ARITHMETIC)
        if is_integer and node not in elsewhere and all(user in calls or user in free for user in node.users):
            free.add(node)
    return free


def _sources(call: fx.Node, names: Sequence[str]) -> set[fx.Node]:
    """All that some arguments of a call are computed of."""
    found: set[fx.Node] = set()
    left = _nodes([call.kwargs[name] for name in names])
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _function(
    gm: fx.GraphModule,
    inputs: Sequence[fx.Node],
    needed: set[fx.Node],
    calls: Mapping[fx.Node, tuple[str, ...]],
) -> Callable[..., Any]:
    """The part of a program that computes the arguments, as a function of its own."""
    graph = fx.Graph()
    made = {n: graph.placeholder(n.name) for n in inputs}
    for node in gm.graph.nodes:
        if node in needed and node not in made:
            made[node] = graph.node_copy(node, lambda n: made[n])
    graph.output(
        [
            {name: fx.map_arg(list(node.kwargs[name]), lambda n: made[n]) for name in names}  # type: ignore[arg-type]
            for node, names in calls.items()
        ]
    )
    return fx.GraphModule({}, graph).forward
