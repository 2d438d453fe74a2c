"""Graph mode for PyTorch on every device: capture a model's work once, replay it, change nothing in the model."""

from graphmode import (
    version_check as _version_check,
)  # first: says clearly what is wrong before anything loads
from graphmode.compile import compile
from graphmode.errors import GraphModeError
from graphmode.graph import Graph
from graphmode.inspect.report import report, reset
from graphmode.options import Options, options

_version_check.check()

__version__ = "0.1.0"
__all__ = ["Graph", "GraphModeError", "compile", "Options", "options", "report", "reset"]
