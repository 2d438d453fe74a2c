"""Every error graphmode raises: what was expected, what came, and what to do next."""

from __future__ import annotations


class GraphModeError(RuntimeError):
    """Base of all of graphmode's errors."""


class UnsupportedError(GraphModeError):
    """This Python, torch or device is not one that graphmode can serve."""


class OptionError(GraphModeError, ValueError):
    """An unknown option, or a value it does not take."""


class CaptureError(GraphModeError):
    """The work can't be captured as a graph; `reason` names the call, `line` the user's source line."""

    def __init__(self, message: str, reason: str | None = None, line: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message
        self.line = line


class StateError(GraphModeError):
    """A call in the wrong order: replay before capture, capture inside capture, use after reset."""


class InputError(GraphModeError):
    """An input is not of the device, dtype, rank or size the graph was captured for."""


class FallbackError(GraphModeError):
    """Something would have run outside a graph, and `require=True` forbids it."""


class MemoryCapError(GraphModeError):
    """A graph alone is larger than the cap set for graphs."""
