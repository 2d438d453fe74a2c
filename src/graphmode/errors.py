"""Every error graphmode raises: what was expected, what came, and what to do next."""

from __future__ import annotations

from torch._dynamo import exc  # Dynamo hands a ShortenTraceback on as it is, and wraps any other error


class GraphModeError(RuntimeError):
    """Base of all of graphmode's errors."""


class UnsupportedError(exc.ShortenTraceback, GraphModeError):
    """This Python, torch or device is not one that graphmode can serve."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


class EngineError(UnsupportedError):
    """The engine asked for can't compile here: what is missing, and how to get it."""


class OptionError(exc.ShortenTraceback, GraphModeError, ValueError):
    """An unknown option, or a value it does not take."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)


class CaptureError(GraphModeError):
    """The work can't be captured as a graph; `reason` names the call, `line` the user's source line.

    `for_want_of_room`: the device has none for another graph now, and may have some when one is gone.
    """

    def __init__(
        self, message: str, reason: str | None = None, line: str | None = None, for_want_of_room: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason or message
        self.line = line
        self.for_want_of_room = for_want_of_room


class StateError(GraphModeError):
    """A call in the wrong order: replay before capture, capture inside capture, use after reset."""


class InputError(GraphModeError):
    """An input is not of the device, dtype, rank or size the graph was captured for."""


class FallbackError(GraphModeError):
    """Something would have run outside a graph, and `require=True` forbids it."""


class MemoryCapError(CaptureError):
    """A graph needs more memory than the cap set for graphs."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
