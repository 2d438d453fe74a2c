"""The public surface: at most ten names, the entry points, errors of one family, bad arguments named."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
import torch

import graphmode
from graphmode import errors


def test_at_most_ten_public_names_and_all_exist() -> None:
    assert len(graphmode.__all__) <= 10
    assert all(hasattr(graphmode, n) for n in graphmode.__all__)
    assert {"compile", "Graph", "Options", "explain", "report", "reset", "GraphModeError"} <= set(graphmode.__all__)


def test_the_backend_is_found_by_its_key() -> None:
    assert "graphmode" in {e.name for e in entry_points(group="torch_dynamo_backends")}
    assert "graphmode" in torch.compiler.list_backends()


def test_every_error_is_a_graph_mode_error() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) >= 7 and all(issubclass(e, graphmode.GraphModeError) and e.__doc__ for e in found)


@pytest.mark.parametrize("bad", [3, None, "model", torch.ones(2)])
def test_compile_takes_only_what_can_be_called(bad: object) -> None:
    with pytest.raises(TypeError, match="module or a function"):
        graphmode.compile(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"x": torch.ones(2)}, "inputs", 3])
def test_example_inputs_are_a_tensor_or_a_sequence(bad: object) -> None:
    with pytest.raises(TypeError, match="example_inputs"):
        graphmode.compile(lambda x: x, bad)  # type: ignore[arg-type]


def test_example_inputs_capture_at_once() -> None:
    g = graphmode.compile(lambda x, y: x + y, [torch.ones(3), torch.ones(3)])
    before = graphmode.report()
    assert before.captures == 1
    assert torch.equal(g(torch.ones(3), torch.ones(3)), torch.full((3,), 2.0))
    assert graphmode.report().replays == before.replays + 1


def test_a_compiled_model_has_the_model_s_attributes() -> None:
    net = torch.nn.Linear(3, 3)
    g = graphmode.compile(net)
    assert g.weight is net.weight and list(g.parameters()) == list(net.parameters())
    with pytest.raises(AttributeError):
        _ = g.no_such_thing
