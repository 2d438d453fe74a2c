"""`compile`: our own flat check in the place of Dynamo's guards, for when those cost more than the replay.

Dynamo traces the model once; what its guards read is compared natively, and the runner is called directly.
Whatever can't be checked that way goes on through Dynamo, with the reason in `report()`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting
from torch._guards import Source

from graphmode import _C
from graphmode.backend import graphmode_backend
from graphmode.inspect.counters import ledger
from graphmode.options import Options, resolve
from graphmode.runtime.results import NoTemplate, template
from graphmode.runtime.watch import NotWatchable, Watch, is_mode, watch

_LEARNED_IN_VAIN = 8  # calls that went through Dynamo without a path ever serving one
_PATHS = 64  # signatures that skip Dynamo; the least recently used goes through it again


@dataclass
class _Trace:
    """What Dynamo knew when it handed over the graph."""

    sources: list[Source]
    side_effects: bool
    global_scope: dict[str, Any]


class _Call(threading.local):
    """The runner calls that a call of the model made."""

    def __init__(self) -> None:
        self.made: list[tuple[_Trace, Any, tuple[Any, ...], tuple[Any, ...]]] | None = None


class Learner:
    """Dynamo's path. It learns from each call how the next one like it can do without."""

    def __init__(self, model: Callable[..., Any], options: Options) -> None:
        self.model = model
        self.options = options
        self.fast: _C.FastCall | None = None
        self.why_not: str | None = None  # why Dynamo's guards stay
        self.unchecked: set[str] = set()
        self._call = _Call()
        self._vain = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        # A code object of its own: Dynamo keeps its caches, and counts recompilations, by code object.
        name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "call")
        self._traced = FunctionType(
            call.__code__.replace(co_name=f"graphmode_{name}"), call.__globals__, None, None, call.__closure__
        )
        backend = _weakly(self._backend)
        self._whole = torch.compile(self._traced, backend=backend, fullgraph=True)
        self._parts = torch.compile(self._traced, backend=backend)
        self._run = self._whole

    def _backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        tx = InstructionTranslator.current_tx()
        read = [g.originating_source for g in tx.output.guards if not is_mode(g.originating_source)]
        for node in gm.graph.find_nodes(op="placeholder"):
            argument = node.meta.get("grapharg")
            if argument is not None:
                read.append(argument.source)
        trace = _Trace(read, _changes_python_state(tx.output.side_effects), tx.f_globals)
        run = graphmode_backend(gm, example_inputs, self.options)
        call = self._call

        def entry(*args: Any) -> Any:
            results = run(*args)
            if call.made is not None:
                call.made.append((trace, run, args, results))
            return results

        return entry

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.why_not is not None:
            return self._run(*args, **kwargs)
        outer, self._call.made = self._call.made, []
        try:
            result = self._run(*args, **kwargs)
            made = self._call.made
        except TorchDynamoException as error:
            self._give_up(_first_line(error))
            self._run = self._parts
            return self._run(*args, **kwargs)
        finally:
            self._call.made = outer
        self._learn(args, kwargs, result, made)
        return result

    def _give_up(self, why: str) -> None:
        self.why_not = why
        ledger.gone.fall_back(f"Dynamo's guards stay in place: {why}")

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, made: list[Any]) -> None:
        if self.fast is None:
            return
        if len(made) != 1:
            self._give_up(f"a call of the model ran {len(made)} graphs")
            return
        trace, run, runner_args, items = made[0]
        if trace.side_effects:
            self._give_up("the model changes Python state, which only Dynamo's code repeats")
            return
        if not isinstance(run, _C.Runner):
            self._give_up("part of the model runs live")
            return
        self._vain = 0 if sum(_C.fast_paths(self.fast)) else self._vain + 1
        if self._vain > _LEARNED_IN_VAIN + self.options.capture_after:
            self._give_up("what the model reads, or an object among its arguments, is another one at every call")
            return
        scope = {"args": args, "kwargs": kwargs, "model": self.model}
        tensors, containers = _arguments([*args, *kwargs.values()])
        try:
            matched = frozenset(map(id, [args, kwargs, *containers]))
            seen: Watch = watch(trace.sources, scope, trace.global_scope, matched)
            self.unchecked |= seen.unchecked
            shape, rebuild = template(result, items, tensors, containers)
            _C.fast_learn(self.fast, args, kwargs, seen.entries, list(runner_args), run, shape, rebuild)
        except (NoTemplate, NotWatchable) as error:
            self._give_up(str(error))
            return
        _C.fast_keep(self.fast, _PATHS)


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a method of an object that it keeps not alive: Dynamo holds every backend it ever saw."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        alive = reference()
        assert alive is not None
        return alive(*args, **kwargs)

    return call


def _arguments(values: Sequence[Any]) -> tuple[list[torch.Tensor], list[Any]]:
    """Tensors among the arguments, in the order native code meets them, and the containers they came in."""
    tensors: list[torch.Tensor] = []
    containers: list[Any] = []

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif type(value) in (tuple, list):
            containers.append(value)
            for v in value:
                visit(v)
        elif type(value) is dict:
            containers.append(value)
            for v in value.values():
                visit(v)

    for v in values:
        visit(v)
    return tensors, containers


def _changes_python_state(effects: SideEffects) -> bool:
    # Objects made in the trace are the trace's own; only what existed before matters to the caller.
    existing = (AttributeMutationExisting, ValueMutationExisting)
    return bool(effects.tensor_hooks or effects.save_for_backward) or any(
        isinstance(v.mutation_type, existing) and effects.is_modified(v) for v in effects.id_to_variable.values()
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def compile(
    model: Callable[..., Any], example_inputs: Sequence[Any] | torch.Tensor | None = None, **options: Any
) -> Any:
    """Compiles a model or function, with a native check in the place of Dynamo's guards.

    The result is called as the model is; its other attributes are the model's.

    Args:
        model: any module or function that `torch.compile` takes.
        example_inputs: positional arguments (or one tensor) to trace and capture with now, rather than at the first
            calls. The model runs on them: state it keeps advances, torch's generator is put back.
        **options: see `graphmode.Options`.

    Raises:
        OptionError: an unknown option or a bad value.
    """
    if not callable(model):
        raise TypeError(f"graphmode.compile takes a module or a function; got {type(model).__name__}")
    learner = Learner(model, resolve(options))
    fast = _C.FastCall(learner)
    learner.fast = fast
    fast.model = model  # type: ignore[attr-defined]
    fast.learner = learner  # type: ignore[attr-defined]
    if example_inputs is not None:
        given: Sequence[Any] = [example_inputs] if isinstance(example_inputs, torch.Tensor) else example_inputs
        if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
            raise TypeError("example_inputs takes a tensor, or a list or tuple of positional arguments")
        state = torch.get_rng_state()
        for _ in range(learner.options.capture_after + 1):
            fast(*given)
        torch.set_rng_state(state)
    return fast
