"""The public surface: at most ten names, the entry points, errors of one family, bad arguments named."""

from __future__ import annotations

import copy
import pickle
import weakref
from importlib.metadata import entry_points
from typing import Any

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


class Holder(torch.nn.Module):
    """Has attributes by the names that a wrapper might want for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.fast, self.learner = torch.nn.Linear(3, 3), 1, 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def test_attributes_are_set_and_deleted_on_the_model() -> None:
    net = Holder()
    g = graphmode.compile(net)
    assert g.model is net.model and (g.fast, g.learner) == (1, 2)
    g.fast = 5
    g.extra = "x"
    assert (net.fast, net.extra) == (5, "x")
    del g.extra
    assert not hasattr(net, "extra") and not hasattr(g, "extra")
    assert g.eval() is net and not net.training
    assert g.state_dict().keys() == net.state_dict().keys()


def test_a_compiled_module_is_a_module() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
    g = graphmode.compile(net)
    assert isinstance(g, torch.nn.Module) and isinstance(g, torch.nn.Sequential)
    assert g[0] is net[0] and len(g) == 2 and list(g) == list(net) and net[1] in list(g)
    g[1] = torch.nn.Tanh()
    assert isinstance(net[1], torch.nn.Tanh)
    assert bool(g) and "Sequential" in repr(g) and weakref.ref(g)() is g
    outer = torch.nn.Module()
    outer.inner = g
    assert {n for n, _ in outer.named_parameters()} == {"inner.0.weight", "inner.0.bias"}


def double(x: torch.Tensor) -> torch.Tensor:
    """Twice x."""
    return x * 2


def test_a_compiled_function_is_a_method_where_it_stands_in_a_class() -> None:
    class Own:
        factor = 3.0

        @graphmode.compile
        def scale(self: Any, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    own = Own()
    for _ in range(4):
        assert torch.equal(own.scale(torch.ones(2)), torch.full((2,), 3.0))
    assert graphmode.compile(double).__name__ == "double" and graphmode.compile(double).__doc__ == "Twice x."


def test_a_copy_is_compiled_anew_from_a_copy_of_the_model() -> None:
    net = torch.nn.Linear(3, 3)
    g, x = graphmode.compile(net, capture_after=0), torch.randn(2, 3)
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        assert type(other) is type(g) and other.weight is not net.weight and torch.equal(other.weight, net.weight)
        with torch.no_grad():
            for _ in range(4):
                assert torch.equal(other(x), net(x))
    assert copy.copy(g).weight is net.weight
    assert pickle.loads(pickle.dumps(graphmode.compile(double))).__name__ == "double"


def test_a_compiled_model_inside_another_function_that_is_compiled() -> None:
    net = torch.nn.Linear(3, 3)
    g, x = graphmode.compile(net), torch.randn(2, 3)
    outer = torch.compile(lambda x: g(x) + 1, backend="graphmode")
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(outer(x), net(x) + 1)
