"""The user's source line: of a node, from its stack trace, and of the running call."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.fx as fx

from graphmode.program.lines import line_of, line_running


def node_with(trace: str | None) -> fx.Node:
    graph = fx.Graph()
    node = graph.call_function(torch.add, (graph.placeholder("x"), 1))
    if trace is not None:
        node.meta["stack_trace"] = trace
    return node


def test_the_innermost_frame_is_taken() -> None:
    trace = (
        '  File "/home/me/run.py", line 3, in main\n    model(x)\n'
        '  File "/home/me/net.py", line 12, in forward\n    y = a + b\n'
    )
    assert line_of(node_with(trace)) == "net.py:12 in forward: y = a + b"


def test_without_a_trace_the_line_is_empty() -> None:
    assert line_of(node_with(None)) == line_of(node_with("")) == line_of(node_with("no frames here")) == ""


def test_a_frame_without_code_still_names_its_place() -> None:
    assert line_of(node_with('  File "/a/b.py", line 7, in f\n')).startswith("b.py:7 in f")


def test_the_running_line_is_the_caller_s() -> None:
    assert line_running() == f"{Path(__file__).name}:38 in test_the_running_line_is_the_caller_s: " + (
        'assert line_running() == f"{Path(__file__).name}:38 in test_the_running_line_is_the_caller_s: " + ('
    )


def test_torch_s_frames_are_left_out() -> None:
    lines: list[str] = []

    class Reads(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            lines.append(line_running())
            return func(*args, **(kwargs or {}))

    with Reads():
        torch.nn.functional.relu(torch.zeros(2))
    assert all(line.startswith(Path(__file__).name) for line in lines)
