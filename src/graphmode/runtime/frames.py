"""What Dynamo does with the frames it compiles for us, which it would do in silence.

RNNs are traced; past its recompile limit a function is not eager for ever but compiled anew after a while; what Dynamo
fails to trace runs in Python; with `require` a split is an error. Uses a hook that Dynamo calls before it compiles any
frame.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import config
from torch._dynamo.cache_size import exceeds_recompile_limit
from torch._dynamo.eval_frame import OptimizeContext, innermost_backend
from torch._dynamo.utils import (
    _get_error_on_graph_break,
    _set_error_on_graph_break,
    register_hook_for_recompile_user_context,
)

from graphmode.errors import FallbackError, OptionError
from graphmode.inspect.counters import ledger
from graphmode.inspect.dynamo import dynamo_breaks
from graphmode.options import Options, resolve

_FIRST_WAIT = 16  # eager calls before a function is compiled anew; doubled each time
_CONFIG = {
    "allow_rnn": True,  # off in Dynamo for the sake of compilers that unroll them
    "record_runtime_overhead": False,  # two Python calls in every call of what it compiles
}


@dataclass
class _Frame:
    """What is known of a frame before it is compiled."""

    code: CodeType
    options: Options
    context: OptimizeContext | None  # the torch.compile() it is for
    cleanups: list[Callable[[], Any]] | None  # run when its outermost call ends


def watch_frames() -> None:
    """Has Dynamo tell us of each frame before it compiles it."""
    register_hook_for_recompile_user_context(_before_compile)


def _before_compile() -> str:
    compiling = _calling("_compile", sys._getframe(1))
    if compiling is None:
        return ""
    known = compiling.f_locals
    options = _options_of(known["compiler_fn"])
    if options is None:
        return ""
    wrapper = _calling("compile_wrapper", compiling)
    around = wrapper.f_locals if wrapper is not None else {}
    frame = _Frame(known["code"], options, around.get("self"), around.get("cleanups"))
    dynamo_breaks.compiling(str(known["compile_id"]), frame.code)
    if frame.cleanups is not None:
        _configure(frame.cleanups)
        if not options.require and known["cache_size"].num_cache_entries == 0:
            _survive_errors_of_tracing(frame.code, frame.cleanups)
    hit, which = exceeds_recompile_limit(known["cache_size"], known["compile_id"])
    if hit:
        _limited(frame, which, known["recompile_reason"] or "")
    elif options.require and frame.cleanups is not None:
        _forbid_splits(frame.cleanups)
    return ""


def _calling(name: str, frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        if frame.f_code.co_name == name and "_dynamo" in frame.f_code.co_filename:
            return frame
        frame = frame.f_back
    return None


def _options_of(compiler: Callable[..., Any]) -> Options | None:
    """The options of a torch.compile() with our backend; None for any other."""
    backend = innermost_backend(compiler)
    given = getattr(backend, "kwargs", {})
    function = getattr(backend, "compiler_fn", backend)
    if not getattr(function, "is_graphmode", False):
        return None
    own = getattr(function, "options", None)
    if isinstance(own, Options):  # graphmode.compile's
        return own
    try:
        return resolve(given.get("options"), given.get("mode"))
    except OptionError:
        return Options()  # the backend will say so


def _configure(cleanups: list[Callable[[], Any]]) -> None:
    before = {name: getattr(config, name) for name in _CONFIG}
    if before == _CONFIG:
        return

    def restore() -> None:
        for name, value in before.items():
            setattr(config, name, value)

    for name, value in _CONFIG.items():
        setattr(config, name, value)
    cleanups.append(restore)


_suppressed_before: bool | None = None  # Dynamo's own setting, while ours is in force


def _survive_errors_of_tracing(code: CodeType, cleanups: list[Callable[[], Any]]) -> None:
    """A function that Dynamo fails to trace runs in Python: eager's results, or eager's own error.

    After an error of eager's the function is traced anew: one bad call must not leave it in Python for ever. Only for
    a function that was never traced: Dynamo would drop what it has compiled, and a later failure is the call's own.
    """
    global _suppressed_before
    if _suppressed_before is None:
        _suppressed_before = config.suppress_errors
    config.suppress_errors = True

    def restore() -> None:
        errors_reach_the_caller()
        if sys.exc_info()[0] is not None:  # the call is being left by an exception
            reset_code(code)

    cleanups.append(restore)


def errors_reach_the_caller() -> None:
    """Puts Dynamo's setting back: tracing is over, and what the backend raises is for the user."""
    global _suppressed_before
    if _suppressed_before is not None:
        config.suppress_errors = _suppressed_before
        _suppressed_before = None


def _forbid_splits(cleanups: list[Callable[[], Any]]) -> None:
    before = _get_error_on_graph_break()
    if not before:
        _set_error_on_graph_break(True)
        cleanups.append(lambda: _set_error_on_graph_break(before))


# --- the recompile limit ------------------------------------------------------------------------------------------

_waits: weakref.WeakKeyDictionary[OptimizeContext, dict[CodeType, int]] = weakref.WeakKeyDictionary()
_LIMIT_REACHED = "Dynamo's {} is reached: the function runs in Python for a while, then it is compiled anew"


def _limited(frame: _Frame, which: str, last: str) -> None:
    code = frame.code
    line = f"{Path(code.co_filename).name}:{code.co_firstlineno} in {code.co_name}"
    reason = _LIMIT_REACHED.format(which)
    _count(reason, line)
    if frame.options.require:
        raise FallbackError(f"require=True: a call would run outside a graph: {reason} at {line}; last guard: {last}")
    if frame.context is None:
        return
    waits = _waits.setdefault(frame.context, {})
    waits[code] = 2 * waits.get(code, _FIRST_WAIT // 2)
    _wait(frame.context, code, waits[code], reason, line)


def _wait(context: OptimizeContext, code: CodeType, calls: int, reason: str, line: str) -> None:
    """Counts the calls that run in Python, and frees the function's old entries after so many."""
    left = calls

    def enter() -> Callable[[], None]:
        nonlocal left
        if left == 0:
            context.enter_exit_hooks = [hook for hook in context.enter_exit_hooks if hook is not enter]
            reset_code(code)
            return lambda: None
        before = ledger.calls()

        def leave() -> None:
            nonlocal left
            if ledger.calls() == before:  # no graph of ours had a part in it
                left -= 1
                _count(reason, line)

        return leave

    context.enter_exit_hooks = [*context.enter_exit_hooks, enter]


def _count(reason: str, line: str) -> None:
    ledger.gone.live_calls += 1
    ledger.gone.fall_back(reason, None, line)
