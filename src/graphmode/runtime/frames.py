"""What Dynamo does with the frames it compiles for us, which it would do in silence.

RNNs are traced; past its recompile limit a function is not eager for ever but compiled anew after a while; what Dynamo
fails to trace runs in Python; with `require` a split is an error. Uses a hook that Dynamo calls before it compiles any
frame.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch._C._dynamo.eval_frame import (
    _debug_get_cache_entry_list,
    _FrameAction,
    _FrameExecStrategy,
    reset_code,
    set_code_exec_strategy,
)
from torch._dynamo import config
from torch._dynamo.cache_size import exceeds_recompile_limit
from torch._dynamo.eval_frame import OptimizeContext, innermost_backend
from torch._dynamo.utils import (
    _get_error_on_graph_break,
    _set_error_on_graph_break,
    get_compilation_metrics,
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


_Counts = weakref.WeakKeyDictionary[OptimizeContext, dict[CodeType, int]]
_waits: _Counts = weakref.WeakKeyDictionary()  # calls that a function runs in Python, the last time
_empty: _Counts = weakref.WeakKeyDictionary()  # calls without an op


def watch_frames() -> None:
    """Has Dynamo tell us of each frame before it compiles it."""
    register_hook_for_recompile_user_context(_before_compile)


def _before_compile() -> str:
    errors_reach_the_caller()
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
            _survive_errors_of_tracing(frame, frame.cleanups)
    hit, which = exceeds_recompile_limit(known["cache_size"], known["compile_id"])
    if hit:
        _limited(frame, which, known["recompile_reason"] or "")
    elif frame.cleanups is not None:
        frame.cleanups.append(partial(_undo_skip, frame, known["cache_size"].num_cache_entries))
        if options.require:
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


class _Surviving(threading.local):
    on = False  # whether suppress_errors is ours at the moment; Dynamo's configuration is each thread's own


_surviving = _Surviving()


def _survive_errors_of_tracing(frame: _Frame, cleanups: list[Callable[[], Any]]) -> None:
    """A function that Dynamo fails to trace runs in Python: eager's results, or eager's own error.

    When that error leaves the compiled call, the function is traced anew by the next one: a bad call must not leave it
    in Python for ever. Only for a function that has nothing compiled yet, which Dynamo would drop.
    """
    if frame.context is None or frame.context.fullgraph or config.suppress_errors:
        return
    if config.fail_on_recompile_limit_hit:  # Dynamo takes one of the two
        return
    handled = sys.exc_info()[1]  # the caller may be in an except block
    config.suppress_errors = _surviving.on = True

    def restore() -> None:
        errors_reach_the_caller()
        raised = sys.exc_info()[1]
        if raised is not None and raised is not handled and not _debug_get_cache_entry_list(frame.code):
            reset_code(frame.code)

    cleanups.append(restore)


def errors_reach_the_caller() -> None:
    """Tracing is over, or is another's: what is raised from now on is for the user."""
    if _surviving.on:
        config.suppress_errors = _surviving.on = False


def _forbid_splits(cleanups: list[Callable[[], Any]]) -> None:
    before = _get_error_on_graph_break()
    if not before:
        _set_error_on_graph_break(True)
        cleanups.append(lambda: _set_error_on_graph_break(before))


# --- calls without an op ------------------------------------------------------------------------------------------

_EMPTY = "a call had no op to capture, and Dynamo left the function to Python{}"
_AT_ONCE = 4  # how often it is undone at once: each such call costs a trace


def _undo_skip(frame: _Frame, entries: int) -> None:
    """One call without an op would leave a function to Python for good, with all that was compiled of it."""
    last = next(iter(reversed(get_compilation_metrics())), None)
    if last is None or last.fail_reason or len(_debug_get_cache_entry_list(frame.code)) != entries:
        return
    line = _line(frame.code)
    if frame.context is None:
        _count(_EMPTY.format(" for good"), line)
        return
    times = _empty.setdefault(frame.context, {})
    times[frame.code] = times.get(frame.code, 0) + 1
    if times[frame.code] <= _AT_ONCE:
        _count(_EMPTY.format(", which is undone"), line)
        set_code_exec_strategy(frame.code, _FrameExecStrategy(_FrameAction.DEFAULT, _FrameAction.DEFAULT))
    else:
        _wait(frame, _EMPTY.format(" for a while"), line)


# --- the recompile limit ------------------------------------------------------------------------------------------

_LIMIT_REACHED = "Dynamo's {} is reached: the function runs in Python for a while, then it is compiled anew"


def _limited(frame: _Frame, which: str, last: str) -> None:
    code = frame.code
    line = _line(code)
    reason = _LIMIT_REACHED.format(which)
    _count(reason, line)
    if frame.options.require:
        raise FallbackError(f"require=True: a call would run outside a graph: {reason} at {line}; last guard: {last}")
    if frame.context is None:
        return
    _wait(frame, reason, line)


def _wait(frame: _Frame, reason: str, line: str) -> None:
    """Counts the calls that run in Python, and frees the function's old entries after so many, each time twice."""
    context, code = frame.context, frame.code
    assert context is not None
    waits = _waits.setdefault(context, {})
    waits[code] = left = 2 * waits.get(code, _FIRST_WAIT // 2)

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


def _line(code: CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_firstlineno} in {code.co_name}"


def _count(reason: str, line: str) -> None:
    ledger.gone.live_calls += 1
    ledger.gone.fall_back(reason, None, line)
