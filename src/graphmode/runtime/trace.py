"""One of Dynamo's traces: what it read, which of its guards are run again, and what it would not miss.

Filled while Dynamo compiles, first by its backend call, then when it builds guards. Read at each call that learns.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.output_graph import OutputGraph
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.types import GuardFilterEntry
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting
from torch._dynamo.variables.user_defined import UserDefinedObjectVariable
from torch._guards import Source

from graphmode import _C
from graphmode.runtime.guards import Guards
from graphmode.runtime.watch import CONSTANTS, Pin, Watched, roots

CHANGES_STATE = "the model changes Python state, which only Dynamo's code repeats"


class NotWatchable(Exception):
    """The traced code read something that a flat check can't compare; the message names it."""


@dataclass
class Learned:
    """What FastCall needs to know of one call."""

    watch: _C.Watch
    given: list[tuple[int, Any]]  # per argument of the runner: (index of a leaf, None) or (-1, object)
    compared: list[bool]  # per leaf: whether FastCall compares its form, as the runner doesn't


class Trace:
    """A trace by Dynamo that became one graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        """To be made inside Dynamo's call of its backend."""
        tx = InstructionTranslator.current_tx()
        self.name: str = gm.meta["backend_id"]
        self.inputs: list[Source] = [
            node.meta["grapharg"].source for node in gm.graph.find_nodes(op="placeholder") if "grapharg" in node.meta
        ]
        self.all_known = len(self.inputs) == len(gm.graph.find_nodes(op="placeholder"))
        self.writes = _writes(tx.output.side_effects)  # None: Python state changes that no flat check can follow
        self.dynamic = False
        self.guards: Guards | None = None
        self.why_not: str | None = None
        self.unguarded: _C.Watch | None = None
        self._global_scope: dict[str, Any] = tx.output.global_scope
        self._output: OutputGraph | None = tx.output

    def take_guards(self, entries: Sequence[GuardFilterEntry], code: types.CodeType) -> None:
        """To be called while Dynamo builds the guards of this trace."""
        output, self._output = self._output, None
        assert output is not None
        self.dynamic = bool(output.shape_env.var_to_sources)
        watched = Watched(output.local_scope, self._global_scope, self.inputs)
        try:
            self.guards = Guards.of(entries, watched, self.inputs, output, code, static=not self.dynamic)
        except Exception as error:  # Dynamo would take it for an error of its own, and the call would fail
            self.why_not = f"Dynamo's guards can't be sorted ({type(error).__name__}: {error})"
        if _C.DICT_TAGS:
            self.unguarded = _C.Watch(watched.unguarded)

    def learn(self, scope: dict[str, Any], given: Sequence[Any], code: types.CodeType) -> Learned:
        """What has to be equal at a later call for this one's graph to serve it.

        Args:
            scope: the traced frame's names: args, kwargs and model.
            given: what the runner got.
            code: the traced code.

        Raises:
            NotWatchable: no flat check and no guard can say that.
        """
        if not _C.DICT_TAGS:
            raise NotWatchable("this Python keeps no versions of dicts, by which attributes are compared")
        if self.guards is None or not self.all_known or len(given) != len(self.inputs):
            raise NotWatchable(self.why_not or "Dynamo did not say where the graph's inputs come from")
        watched = Watched(scope, self._global_scope, self.inputs)
        uncovered = self.guards.uncovered(watched, self.inputs)
        if uncovered is not None:
            raise NotWatchable(f"{uncovered.name} changed its kind")
        tensors = [t for t in roots([*scope["args"], *scope["kwargs"].values()]) if isinstance(t, torch.Tensor)]
        sources: list[tuple[int, Any]] = []
        for source, value in zip(self.inputs, given, strict=True):
            pinned = watched.pin(source)
            if pinned.kind is Pin.LOOSE:
                raise NotWatchable(f"{_name(source)} is of a kind that a flat check can't compare")
            if isinstance(value, torch.Tensor) and isinstance(pinned.value, torch.Tensor) and value is not pinned.value:
                raise NotWatchable(f"{_name(source)} was another tensor while the call ran")
            if pinned.kind is Pin.LEAF:
                sources.append((next(i for i, t in enumerate(tensors) if t is value), None))
            else:
                sources.append((-1, value))
        for written, name, constant in self.writes or ():
            if not watched.pins_attribute(written, name, constant):
                raise NotWatchable(CHANGES_STATE)
        compared = [self.dynamic or not any(t is value for value in given) for t in tensors]
        watch = _C.Watch(watched.entries)
        if not self._holds(scope, code):
            raise NotWatchable("what the model reads changed while it ran")
        return Learned(watch, sources, compared)

    def _holds(self, scope: dict[str, Any], code: types.CodeType) -> bool:
        """Whether Dynamo would take this trace for a call now: what was recorded is then this trace's."""
        return any(
            self.name in entry.code.co_names and entry.guard_manager.check(scope)
            for entry in _debug_get_cache_entry_list(code)
        )


def _writes(effects: SideEffects) -> list[tuple[Source, str, Any]] | None:
    """Constants that the traced code leaves in attributes: (object, attribute, constant); None if it leaves more."""
    if effects.tensor_hooks or effects.save_for_backward:
        return None
    # Objects made in the trace are the trace's own; only what existed before matters to the caller.
    existing = (AttributeMutationExisting, ValueMutationExisting)
    changed = [
        v for v in effects.id_to_variable.values() if isinstance(v.mutation_type, existing) and effects.is_modified(v)
    ]
    writes = []
    for v in changed:
        if v.source is None or not isinstance(v.mutation_type, AttributeMutationExisting):
            return None
        if v not in effects.store_attr_mutations or (
            isinstance(v, UserDefinedObjectVariable) and v.is_base_vt_modified(effects)
        ):
            return None  # items of a dict, list or set with a class of its own, which are no attributes
        for name, value in effects.store_attr_mutations[v].items():
            if not value.is_python_constant() or type(value.as_python_constant()) not in CONSTANTS:
                return None
            writes.append((v.source, name, value.as_python_constant()))
    return writes


def _name(source: Source) -> str:
    try:
        return str(source.name)
    except Exception:  # some sources have no printable form
        return type(source).__name__
