"""Graph mode for PyTorch on every device: capture a model's work once, replay it, change nothing in the model."""

from graphmode import version_check as version_check  # first: says what is wrong before the native part loads
from graphmode.compile import compile
from graphmode.errors import GraphModeError
from graphmode.graph import Graph
from graphmode.inspect.explain import explain
from graphmode.inspect.report import report, reset
from graphmode.options import Options, options

__version__ = "0.1.0"
__all__ = ["Graph", "GraphModeError", "Options", "compile", "explain", "options", "report", "reset"]
