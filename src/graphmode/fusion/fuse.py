"""Pass: replaces groups of calls by the device's fused ones, and says what it did and what it left, with the reason.

A match is left where a value inside it is used outside, where something between its calls writes memory that they read,
and where the fused call's result is not laid out as the program expects.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from torch.utils import _pytree as pytree

from graphmode.fusion.emit import Emit, Refused, same_for_the_program
from graphmode.fusion.pattern import Found, arguments_of, value_of
from graphmode.fusion.patterns import RULES, Rule
from graphmode.program.effects import PURE_PYTHON, has_effect, is_opaque, is_random, switches_mode, written_arguments

# Makes the calls for a match and returns what stands for the last one, then for each of `also`; raises Refused where
# the device's op can't do it.
Provider = Callable[[Emit, Mapping[str, Any]], Sequence[fx.Node]]
Table = Mapping[str, Provider]


@dataclass
class Fusions:
    """What was done."""

    done: Counter[str] = field(default_factory=Counter)  # by rule
    left: Counter[tuple[str, str]] = field(default_factory=Counter)  # rule and reason


def fuse(gm: fx.GraphModule, table: Table, fuel: int, device: str) -> Fusions:
    """Replaces what the table has a call for, in place; at most `fuel` matches, of tensors of this kind of device."""
    found = Fusions()
    if torch.is_autocast_enabled(device):
        found.left["a group of calls", "autocast is on, and would change what the device's calls give"] += 1
        return found
    switched = _under_a_mode(gm)
    erased: set[fx.Node] = set()
    for rule in RULES:
        provider = table.get(rule.name)
        if provider is None:
            continue
        for root in list(gm.graph.nodes):
            if found.done.total() >= fuel:
                return found
            if root not in erased and root not in switched and _is_on(device, root):
                _try(gm, rule, root, provider, found, erased, switched)
    return found


def _under_a_mode(gm: fx.GraphModule) -> set[fx.Node]:
    """Calls inside a region of autocast: the device's would give other dtypes there than outside."""
    inside: set[fx.Node] = set()
    depth = 0
    for node in gm.graph.nodes:
        if switches_mode(node) and node.target is not torch._C._set_grad_enabled:
            depth += -1 if node.all_input_nodes else 1  # the exit takes what entered
        if depth > 0:
            inside.add(node)
    return inside


def _is_on(device: str, root: fx.Node) -> bool:
    tensors = [t for n in (root, *root.all_input_nodes) for t in pytree.tree_leaves(value_of(n))]
    return all(t.device.type == device for t in tensors if isinstance(t, torch.Tensor))


def _try(
    gm: fx.GraphModule,
    rule: Rule,
    root: fx.Node,
    provider: Provider,
    found: Fusions,
    erased: set[fx.Node],
    switched: set[fx.Node],
) -> None:
    why: Refused | None = None
    for match in rule.pattern.match(root, Found()):
        try:
            erased |= _Match(gm, rule, root, match, switched).replace(provider)
        except Refused as reason:
            why = reason
        else:
            found.done[rule.name] += 1
            return
    if why is not None:
        found.left[rule.name, str(why)] += 1


_MADE = "graphmode_made"  # a call that took a match's place: it writes nothing


class _Match:
    """One match in a program."""

    def __init__(self, gm: fx.GraphModule, rule: Rule, root: fx.Node, found: Found, switched: set[fx.Node]) -> None:
        self._gm = gm
        self._switched = switched
        self._root = root
        self._bound = found.bound
        self._order: dict[fx.Node, int] = {node: i for i, node in enumerate(gm.graph.nodes)}
        self._nodes = sorted(found.nodes, key=self._order.__getitem__)
        self._inputs = {n for node in self._nodes for n in node.all_input_nodes} - set(self._nodes)
        value = value_of(root)
        if isinstance(value, tuple):
            users = list(root.users)
            if any(user.target is not operator.getitem for user in users):
                raise Refused("its results are used as one")
            self._results = [[u for u in users if u.args[1] == i] for i in range(len(value))]
            self._values = list(value)
        else:
            self._results = [[root], *([found.bound[name]] for name in rule.also)]
            self._values = [value_of(nodes[0]) for nodes in self._results]

    def replace(self, provider: Provider) -> set[fx.Node]:
        """Puts the provider's calls in its place; returns the nodes that are gone.

        Raises:
            Refused: it may not be replaced; the program is what it was.
        """
        self._used_inside_only()
        before = self._place()
        if not self._switched.isdisjoint([*self._nodes, before]):
            raise Refused("part of it is inside a region of autocast")
        self._nothing_written()
        emit = Emit(self._gm, before, self._root)
        try:
            made = list(provider(emit, self._bound))
            self._same(made)
        except BaseException:
            emit.undo()
            raise
        for node in emit.made:
            node.meta[_MADE] = True
        inside = {*self._nodes, *emit.made}
        for olds, new in zip(self._results, made, strict=True):
            for old in olds:
                old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
        gone = {*self._nodes, *(n for nodes in self._results for n in nodes)}
        for node in sorted(gone, key=self._order.__getitem__, reverse=True):
            if node.users:
                gone.discard(node)
            else:
                self._gm.graph.erase_node(node)
        return gone

    def _used_inside_only(self) -> None:
        inside, results = set(self._nodes), {n for nodes in self._results for n in nodes}
        for node in self._nodes:
            outside = any(user not in inside and user not in results for user in node.users)
            if node not in results and outside:
                raise Refused("a value inside it is used elsewhere")
        if any(is_random(node.target) and not _is_off(node) for node in self._nodes):
            raise Refused("it draws random numbers")

    def _place(self) -> fx.Node:
        """The call before which all inputs are there and no result is needed yet."""
        inside, order = set(self._nodes), self._order
        last_input = max((order[n] for n in self._inputs), default=-1)
        users = [u for nodes in self._results for n in nodes for u in n.users if u not in inside]
        at = min([order[self._nodes[-1]], *(order[u] for u in users)])
        if last_input >= at:
            raise Refused("a result is used before all it is made of is there")
        (before,) = [n for n, i in order.items() if i == at]
        return before

    def _nothing_written(self) -> None:
        """From the first call that reads memory to the last nothing may write it: the fused call reads it at once."""
        memory: dict[fx.Node, frozenset[Any]] = {}
        for node in self._order:
            memory[node] = _memory_of(node, memory)
        mine = frozenset[Any]().union(*(memory[n] for n in (*self._inputs, *self._nodes)))
        span = range(self._order[self._nodes[0]] + 1, self._order[self._nodes[-1]])
        for node, i in self._order.items():
            if i not in span or not node.op.startswith("call") or node.meta.get(_MADE) or not has_effect(node):
                continue
            if not isinstance(node.target, torch._ops.OpOverload) or is_opaque(node):
                raise Refused(f"{node.target} runs between its calls, and what it writes is not known")
            given = arguments_of(node) or []
            for one in pytree.tree_leaves([given[position] for position in written_arguments(node.target)]):
                if isinstance(one, fx.Node) and memory[one] & mine:
                    raise Refused(f"{node.target} writes between its calls what they read")

    def _same(self, made: Sequence[fx.Node]) -> None:
        if len(made) != len(self._values):
            raise Refused(f"the device's call gives {len(made)} results for {len(self._values)}")
        for new, value in zip(made, self._values, strict=True):
            if not same_for_the_program(value_of(new), value):
                raise Refused(f"the device's call gives {_text(value_of(new))} for {_text(value)}")


def _is_off(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.dropout.default and node.args[2] is False


_GIVEN = "memory of the caller's"  # inputs may be the same memory


def _memory_of(node: fx.Node, memory: Mapping[fx.Node, frozenset[Any]]) -> frozenset[Any]:
    if node.op in ("placeholder", "get_attr"):
        return frozenset([_GIVEN])
    if isinstance(node.target, torch._ops.OpOverload) and all(
        r.alias_info is None for r in node.target._schema.returns
    ):
        return frozenset([node])
    of = frozenset[Any]().union(*(memory[n] for n in node.all_input_nodes))
    return of if node.target in PURE_PYTHON else of | {node}


def _text(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} of strides {list(value.stride())}"
