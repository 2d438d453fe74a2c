"""The user's source line of a node or of the running call, as `file.py:12 in forward: y = self.layer(x)`."""

from __future__ import annotations

import linecache
import re
import sys
from pathlib import Path

import torch
import torch.fx as fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


def is_users(file: str) -> bool:
    """Whether a source file is neither torch's nor ours."""
    return not file.startswith(_OURS)


def line_of(node: fx.Node) -> str:
    """The line of the user's code that a node came from; empty when unknown."""
    trace = node.meta.get("stack_trace") or ""
    frames = _FRAME.findall(trace)
    if not frames:
        return ""
    users = [f for f in frames if is_users(f[0])]  # torch's own are there under a default device
    file, number, function, code = (users or frames)[-1]
    return f"{Path(file).name}:{number} in {function}: {code.strip()}"


def line_running() -> str:
    """The innermost line of the call stack that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file) and not file.startswith("<"):
            code = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).name}:{frame.f_lineno} in {frame.f_code.co_name}: {code}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
