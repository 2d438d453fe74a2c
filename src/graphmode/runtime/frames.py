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
from torch._dynamo.exc import Unsupported
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
from graphmode.program.lines import is_users, line_running

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
    survives: bool = False  # whether a call of it that can't be traced runs in Python


_Counts = weakref.WeakKeyDictionary[OptimizeContext, dict[CodeType, int]]
_waits: _Counts = weakref.WeakKeyDictionary()  # calls that a function runs in Python, the last time
_skips: _Counts = weakref.WeakKeyDictionary()  # calls with which Dynamo left the function to Python


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
    _pause(frame)
    dynamo_breaks.compiling(str(known["compile_id"]), frame.code)
    entries = known["cache_size"].num_cache_entries
    if frame.cleanups is not None:
        _configure(frame.cleanups)
        if not options.require:
            frame.survives = _survive_errors_of_tracing(frame, frame.cleanups)
    hit, which = exceeds_recompile_limit(known["cache_size"], known["compile_id"])
    if hit:
        _limited(frame, which, known["recompile_reason"] or "")
    elif frame.cleanups is not None:
        frame.cleanups.append(partial(_undo_skip, frame, entries, str(known["compile_id"]), sys.exc_info()[1]))
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


def _survive_errors_of_tracing(frame: _Frame, cleanups: list[Callable[[], Any]]) -> bool:
    """A call that Dynamo fails to trace runs in Python: eager's results, or eager's own error. Says whether it does."""
    if frame.context is None or frame.context.fullgraph:
        return False
    if config.suppress_errors:
        return True
    if config.fail_on_recompile_limit_hit:  # Dynamo takes one of the two
        return False
    config.suppress_errors = _surviving.on = True
    cleanups.append(errors_reach_the_caller)
    return True


def errors_reach_the_caller() -> None:
    """Tracing is over, or is another's: what is raised from now on is for the user."""
    if _surviving.on:
        config.suppress_errors = _surviving.on = False


def _forbid_splits(cleanups: list[Callable[[], Any]]) -> None:
    before = _get_error_on_graph_break()
    if not before:
        _set_error_on_graph_break(True)
        cleanups.append(lambda: _set_error_on_graph_break(before))


# --- calls that Dynamo leaves to Python ---------------------------------------------------------------------------

_EMPTY = "a call had no op to capture, and Dynamo left the function to Python{}"
_FAILED = "Dynamo failed to trace a call of a function that is compiled already, and left it to Python{}"
_AT_ONCE = 4  # how often it is undone at once: each such call costs a trace
_DEFAULT = _FrameExecStrategy(_FrameAction.DEFAULT, _FrameAction.DEFAULT)


@dataclass
class _Pause:
    """Calls that are not traced, of a function that goes on with what is compiled of it."""

    left: int
    reason: str
    line: str


_pauses: weakref.WeakKeyDictionary[OptimizeContext, dict[CodeType, _Pause]] = weakref.WeakKeyDictionary()


def _undo_skip(frame: _Frame, entries: int, compile_id: str, handled: BaseException | None) -> None:
    """One call without an op, or one that can't be traced, would leave a function to Python for good.

    And with it all that was compiled of it, for whoever shares its code. A function without anything compiled, which
    Dynamo failed to trace, stays in Python; not so when the call itself raised, which a call with better arguments
    need not do.

    Args:
        frame: what was compiled.
        entries: how many there were before.
        compile_id: Dynamo's name for this time.
        handled: the exception that the caller was handling, which is none of the call.
    """
    if len(_debug_get_cache_entry_list(frame.code)) != entries:
        return
    # Dynamo keeps a few dozen records: one that is gone counts as no failure, which costs a trace more.
    this = next((m for m in reversed(get_compilation_metrics()) if str(m.compile_id) == compile_id), None)
    if this is None or not this.fail_reason:
        _undo(frame, entries, _EMPTY, _line(frame.code))
    elif entries > 0 and frame.survives:
        file, number = this.fail_user_frame_filename, this.fail_user_frame_lineno
        line = f"{Path(file).name}:{number} in {frame.code.co_name}" if file and is_users(file) else _line(frame.code)
        _undo(frame, entries, _FAILED, line)
    elif frame.survives:
        raised = sys.exc_info()[1]
        if raised is not None and raised is not handled:
            set_code_exec_strategy(frame.code, _DEFAULT)


def _undo(frame: _Frame, entries: int, reason: str, line: str) -> None:
    context, code = frame.context, frame.code
    if context is None:
        _count(reason.format(" for good"), line)
        return
    times = _skips.setdefault(context, {})
    times[code] = times.get(code, 0) + 1
    if times[code] > _AT_ONCE and entries == 0:
        _wait(frame, reason.format(" for a while"), line)
        return
    if times[code] > _AT_ONCE:
        reason = reason.format(": for a while such calls are not traced")
        _pauses.setdefault(context, {})[code] = _Pause(_next_wait(context, code), reason, line)
    _count(reason.format(", which is undone"), line)
    set_code_exec_strategy(code, _DEFAULT)  # what is compiled of it serves again


def _pause(frame: _Frame) -> None:
    """Lets the call run in Python, without a trace, if that is what its function is at."""
    pauses = _pauses.get(frame.context, {}) if frame.context is not None else {}
    pause = pauses.get(frame.code)
    if pause is None:
        return
    if pause.left == 0:
        del pauses[frame.code]
        return
    pause.left -= 1
    _count(pause.reason, pause.line)
    not_now = Unsupported("graphmode traces such a call again later")
    not_now.frame_exec_strategy = _DEFAULT
    raise not_now


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


def _next_wait(context: OptimizeContext, code: CodeType) -> int:
    waits = _waits.setdefault(context, {})
    waits[code] = 2 * waits.get(code, _FIRST_WAIT // 2)
    return waits[code]


def _wait(frame: _Frame, reason: str, line: str) -> None:
    """Counts the calls that run in Python, and frees the function's old entries after so many, each time twice."""
    context, code = frame.context, frame.code
    assert context is not None
    left = _next_wait(context, code)

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
    """Where a function begins; of a wrapper of ours, the user's line that called it."""
    where = "" if is_users(code.co_filename) else line_running()
    return where or f"{Path(code.co_filename).name}:{code.co_firstlineno} in {code.co_name}"


def _count(reason: str, line: str) -> None:
    ledger.gone.live_calls += 1
    ledger.gone.fall_back(reason, None, line)
