"""Going on live from a call that gave other sizes or strides at replay than at capture.

What came before it has happened, once; its own result and what the rest needs come from the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from graphmode.errors import GraphModeError
from graphmode.program.effects import switches_mode

Place = tuple[str, int]  # "input" | "value" | "boxed", and its number there
Find = Callable[[torch.Tensor], Place | None]


class _At:
    """Stands for a tensor of the program in a remembered result."""

    def __init__(self, place: Place | None) -> None:
        self.place = place


def calls(node: fx.Node) -> str:
    """The op that a node calls itself, by the dispatcher's name; empty where what it calls is not known."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.name())  # type: ignore[no-untyped-call]
    if isinstance(node.target, torch._ops.OpOverloadPacket):
        return str(node.target._qualified_op_name)
    return ""


class Resume:
    """Where the results of one captured program lie in its graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.nodes = list(gm.graph.nodes)
        self._index = {n: i for i, n in enumerate(self.nodes)}
        self._made: dict[fx.Node, Any] = {}
        self._last = {n: max((self._index[u] for u in n.users), default=-1) for n in self.nodes}

    def position(self, node: fx.Node) -> int:
        """The number of a node, as the graph knows it."""
        return self._index[node]

    def made(self, node: fx.Node, result: Any, find: Find) -> None:
        """Remembers where a node's result lies. Keeps no tensor."""
        if self._last[node] >= 0 and node.op not in ("placeholder", "get_attr") and not switches_mode(node):
            self._made[node] = _replace(result, torch.Tensor, lambda t: _At(find(t)))

    def _needed(self, position: int) -> list[fx.Node]:
        return [n for n in self.nodes[:position] if n in self._made and self._last[n] > position]

    def needs(self, position: int) -> tuple[list[int], list[int]]:
        """Numbers of the values, and of the boxed values, that the rest after a node uses."""
        found: dict[str, list[int]] = {"input": [], "value": [], "boxed": []}

        def note(at: _At) -> None:
            if at.place is not None:
                found[at.place[0]].append(at.place[1])

        for node in self._needed(position):
            _replace(self._made[node], _At, note)
        return list(dict.fromkeys(found["value"])), list(dict.fromkeys(found["boxed"]))

    def go_on(
        self,
        args: Sequence[Any],
        position: int,
        op: str,
        results: Sequence[Any],
        values: Mapping[int, torch.Tensor],
        boxed: Mapping[int, torch.Tensor],
    ) -> Any:
        """Runs what comes after a call, which gave `results`; returns the program's results.

        Raises:
            GraphModeError: what the rest needs is not known. The call's effects so far have happened.
        """
        node = self.nodes[position] if 0 <= position < len(self.nodes) else None
        if node is None or calls(node) not in (op, op.rpartition(".")[0]):
            raise GraphModeError(
                f"{op} gave other sizes or strides than at capture inside {node}, where a call can't go on live; "
                "what came before it has happened. Please report this, and turn graphs off for this model meanwhile"
            )
        places: dict[str, Any] = {"input": args, "value": values, "boxed": boxed}

        def load(at: _At) -> Any:
            if at.place is None:
                raise GraphModeError(f"{op} gave other sizes or strides than at capture, and a value is out of reach")
            return places[at.place[0]][at.place[1]]

        needed = set(self._needed(position))
        placeholders = iter(args)
        env: dict[fx.Node, Any] = {}
        for before in self.nodes[:position]:
            if before.op == "placeholder":
                env[before] = next(placeholders)
            elif before in needed:
                env[before] = _replace(self._made[before], _At, load)
            elif before.op != "get_attr" and not switches_mode(before):
                env[before] = None  # nothing after the call uses it
        env[node] = results[0] if len(results) == 1 else tuple(results) if results else None
        return fx.Interpreter(self.gm).run(*args, initial_env=env, enable_io_processing=False)


def _replace(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replace(v, kind, by) for v in value)
    return value
