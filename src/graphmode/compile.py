"""`compile`: our own flat check in the place of Dynamo's guards, for when those cost more than the replay.

Dynamo traces the model once; what its guards read is compared natively, and the runner is called directly.
Whatever can't be checked that way goes on through Dynamo, with the reason in `report()`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.fx as fx
from torch._C import _len_torch_dispatch_stack
from torch._dynamo import config
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.types import GuardFilterEntry
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from graphmode import _C
from graphmode.backend import graphmode_backend
from graphmode.inspect.counters import ledger
from graphmode.options import Options, resolve
from graphmode.runtime.results import NoTemplate, template
from graphmode.runtime.trace import CHANGES_STATE, NotWatchable, Trace
from graphmode.runtime.watch import roots

_PATHS = 64  # signatures that skip Dynamo; the least recently used goes through it again
_IN_VAIN = 8  # paths that were dropped, one after the other, before one had served a call


class _Call(threading.local):
    """The runner calls that a call of the model made."""

    def __init__(self) -> None:
        self.made: list[tuple[Trace, Any, tuple[Any, ...], tuple[Any, ...]]] | None = None


class Learner:
    """Dynamo's path. It learns from each call how the next one like it can do without."""

    def __init__(self, model: Callable[..., Any], options: Options) -> None:
        self.model = model
        self.options = options
        self.fast = _C.FastCall(self, model)
        self.why_not: str | None = None  # why Dynamo's guards stay
        self._call = _Call()
        self._served = self._in_vain = 0
        self._start()

    def _start(self) -> None:
        """Begins with nothing traced."""
        model = self.model

        def call(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **kwargs)

        # A code object of its own: Dynamo keeps its caches, and counts recompilations, by code object.
        name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "call")
        self._traced = FunctionType(
            call.__code__.replace(co_name=f"graphmode_{name}"), call.__globals__, None, None, call.__closure__
        )
        backend = _weakly(self._backend)
        backend.is_graphmode = True  # type: ignore[attr-defined]  # for frames.py
        backend.options = self.options  # type: ignore[attr-defined]
        self._traces: list[Trace] = []
        filtered: dict[str, Any] = {"guard_filter_fn": _weakly(self._see_guards)}
        self._whole = torch.compile(self._traced, backend=backend, fullgraph=True, options=filtered)
        self._parts = torch.compile(self._traced, backend=backend)
        self._run = self._whole if self.why_not is None else self._parts

    # --- what Dynamo calls while it compiles ----------------------------------------------------------------------

    def _backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        trace = Trace(gm)
        self._traces.append(trace)
        run = graphmode_backend(gm, example_inputs, self.options)
        call = self._call

        def entry(*args: Any) -> Any:
            results = run(*args)
            if call.made is not None:
                call.made.append((trace, run, args, results))
            return results

        return entry

    def _see_guards(self, entries: Sequence[GuardFilterEntry]) -> list[bool]:
        if self._traces and self._traces[-1].guards is None:
            self._traces[-1].take_guards(entries, self._traced.__code__)
        return [True] * len(entries)

    # --- calls ----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reason = _why_eager()
        if reason is not None:
            ledger.gone.fall_back(reason)
            ledger.gone.live_calls += 1
            return self.model(*args, **kwargs)
        with compile_lock:  # Dynamo changes classes while it traces, and puts them back
            changed = any(t.unguarded is not None and not t.unguarded.unchanged() for t in self._traces)
        if changed:
            ledger.gone.fall_back(
                "a class or hook that the model uses changed: Dynamo, which looks at neither, starts anew"
            )
            _C.fast_forget(self.fast)
            self._start()
        if self.why_not is not None:
            return self._run(*args, **kwargs)
        mode = _C.traced_mode()
        outer, self._call.made = self._call.made, []
        try:
            result = self._run(*args, **kwargs)
            made = self._call.made
        except FailOnRecompileLimitHit:
            self._give_up("Dynamo's recompile limit was reached: other calls than those it knows run in eager")
            return self._run(*args, **kwargs)
        except TorchDynamoException as error:
            result = self._parts(*args, **kwargs)  # where the call itself is wrong, this raises eager's error
            self._give_up(_first_line(error))
            return result
        finally:
            self._call.made = outer
        if _C.traced_mode() != mode:
            self._give_up("the model leaves a mode of torch changed, which only Dynamo's code repeats")
        elif _C.is_observed():
            ledger.gone.fall_back("a mode or a hook of torch looks at the call, which goes through Dynamo for that")
        else:
            self._learn(args, kwargs, result, made)
        return result

    def _give_up(self, why: str) -> None:
        self.why_not = why
        self._run = self._parts
        ledger.gone.fall_back(f"Dynamo's guards stay in place: {why}")

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, made: list[Any]) -> None:
        if len(made) != 1:
            self._give_up(f"a call of the model ran {len(made)} graphs")
            return
        trace, run, given, items = made[0]
        if trace.writes is None:
            self._give_up(CHANGES_STATE)
            return
        if not isinstance(run, _C.Runner):
            self._give_up("part of the model runs live")
            return
        tensors = [a for a in given if isinstance(a, torch.Tensor)]
        if (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)) or any(map(_C.has_tangent, tensors)):
            return  # ran under autograd, which the region counts; without gradients it may be captured yet
        if _C.fast_knows(self.fast, args, kwargs, run):
            return  # warming up, refused or gone: the region has no graph for it now
        scope = {"args": args, "kwargs": kwargs, "model": self.model}
        values = list(roots([*args, *kwargs.values()]))
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        containers = [v for v in values if not isinstance(v, torch.Tensor)]
        try:
            learned = trace.learn(scope, given, self._traced.__code__)
            shape, rebuild = template(result, items, tensors, containers)
        except (NoTemplate, NotWatchable) as error:
            self._give_up(str(error))
            return
        dropped = _C.fast_learn(
            self.fast,
            args,
            kwargs,
            learned.watch,
            learned.given,
            learned.compared,
            trace.guards.check,
            run,
            shape,
            rebuild,
            _PATHS,
        )
        served = _C.fast_served(self.fast)
        self._in_vain = self._in_vain + dropped if served == self._served else 0
        self._served = served
        if self._in_vain > _IN_VAIN:
            self._give_up("what the model reads, or an object among its arguments, is another one at every call")

    def copied(self) -> tuple[Any, ...]:
        """How a copy is made, for copy and pickle."""
        return _again, (self.model, self.options)


def _why_eager() -> str | None:
    """Why Dynamo must not see a call; None where it may. It would raise after the model ran."""
    if any(not isinstance(m, DeviceContext) for m in _get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
        # Dynamo would apply the mode to what it traces, and what it traced would run under it again.
        return "a torch function mode looks at the call, which runs in eager for that"
    if _len_torch_dispatch_stack() > 0:
        return "a torch dispatch mode looks at the call, which runs in eager for that"
    if config.disable:
        return "torch.compile is switched off (TORCH_COMPILE_DISABLE, or torch._dynamo.config.disable)"
    return None


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a method of an object that it keeps not alive: Dynamo holds every backend it ever saw."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        alive = reference()
        assert alive is not None
        return alive(*args, **kwargs)

    return call


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _again(model: Callable[..., Any], options: Options) -> _C.FastCall:
    return Learner(model, options).fast


def compile(
    model: Callable[..., Any], example_inputs: Sequence[Any] | torch.Tensor | None = None, **options: Any
) -> Any:
    """Compiles a model or function, with a native check in the place of Dynamo's guards.

    The result is called as the model is. Attributes, items and class are the model's, and setting them sets the
    model's. A copy is compiled anew, from a copy of the model.

    Args:
        model: any module or function that `torch.compile` takes.
        example_inputs: positional arguments (or one tensor) to trace and capture with now, rather than at the first
            calls, in the modes set here: with gradients on, and weights that want them, nothing can be captured.
            The model runs on them: state it keeps advances, torch's generator is put back.
        **options: see `graphmode.Options`.

    Raises:
        OptionError: an unknown option or a bad value.
    """
    if not callable(model):
        raise TypeError(f"graphmode.compile takes a module or a function; got {type(model).__name__}")
    fast = _again(model, resolve(options))
    if example_inputs is not None:
        given: Sequence[Any] = [example_inputs] if isinstance(example_inputs, torch.Tensor) else example_inputs
        if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
            raise TypeError("example_inputs takes a tensor, or a list or tuple of positional arguments")
        state = torch.get_rng_state()
        try:
            for _ in range(resolve(options).capture_after + 1):
                fast(*given)
        finally:
            torch.set_rng_state(state)
    return fast
