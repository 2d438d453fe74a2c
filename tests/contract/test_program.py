"""Programs from Dynamo's own graphs: lowered to ATen with nothing lost, and what is not lowered is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphmode
from graphmode import backend
from graphmode.program.program import Program

from .ways import assert_same, counted


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    made: list[Program] = []
    make = backend.make_program

    def kept(*args: Any) -> Program:
        made.append(make(*args))
        return made[-1]

    monkeypatch.setattr(backend, "make_program", kept)
    return made


def data_written(x: Tensor) -> Tensor:
    x.data.add_(1)
    return x * 2


def autocast_inside(x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x.t()
        with torch.autocast("cpu", enabled=False):
            return y, y.float() @ x


def constants(x: Tensor) -> Tensor:
    t = torch.tensor([1.0, 2.0, 3.0])
    t.add_(1)
    return x[:, :3] * t + torch.tensor(2)


def out_argument(x: Tensor) -> Tensor:
    o = torch.empty(3, 4)
    torch.add(x, 1, out=o)
    return o * 2


def no_grad_inside(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return y + 1


NETS: dict[str, Callable[..., Any]] = {
    "mlp": nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Softmax(-1)),
    "encoder layer": nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(),
    "gru": nn.GRU(4, 5),
    "data written": data_written,
    "autocast inside": autocast_inside,
    "constants": constants,
    "out=": out_argument,
    "no_grad inside": no_grad_inside,
    "random": lambda x: F.dropout(x, 0.5, True) + torch.rand(4) + x.clone().uniform_(),
    "another path under fake tensors": lambda x: (torch.linalg.svdvals(x), torch.linalg.norm(x, "nuc")),
    "cond": lambda x: torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,)) * 2,
    "views": lambda x: (x.expand(2, 3, 4).reshape(2, -1), torch.cat([x]), x.view(3, 4)[:, 1:].contiguous()),
    "checks": lambda x: (torch._check(x.shape[0] < 100), x + 1)[1],
}


@pytest.mark.parametrize("name", NETS)
def test_a_program_does_what_dynamo_s_graph_does(name: str, programs: list[Program]) -> None:
    f = NETS[name]
    f = f.to(torch.get_default_device()) if isinstance(f, nn.Module) else f
    g = torch.compile(f, backend="graphmode")
    with torch.no_grad(), counted() as since:
        for i in range(5):
            x = torch.randn(3, 4) + (-1) ** i
            mine, theirs = x.clone(), x.clone()
            torch.manual_seed(i)
            got = g(mine)
            torch.manual_seed(i)
            assert_same(got, f(theirs))
            assert_same(mine, theirs)
    assert programs and all(p.not_lowered is None for p in programs)
    assert since.replays >= 3
    python = [n for n in graphmode.report().notes if n.startswith("a call outside graphs ran as Python")]
    assert list(graphmode.report().notes) == python and bool(python) == (name == "cond")  # branches are Python


def test_what_is_not_lowered_is_captured_and_noted() -> None:
    f = lambda x: torch.vmap(lambda row: row.sum() * row)(x)  # noqa: E731
    g = torch.compile(f, backend="graphmode")
    with torch.no_grad(), counted() as since:
        for _ in range(4):
            x = torch.randn(3, 4)
            assert_same(g(x), f(x))
    assert since.replays == 2
    (_,) = [n for n in graphmode.report().notes if "without passes" in n]


def test_composites_stay_whole(programs: list[Program]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with torch.no_grad():
        torch.compile(net, backend="graphmode")(torch.randn(2, 4))
    called = [n.target for n in programs[0].gm.graph.nodes if n.op == "call_function"]
    assert called == [torch.ops.aten.linear.default, torch.ops.aten.layer_norm.default]


def test_a_program_prints_with_the_user_s_lines(programs: list[Program]) -> None:
    with torch.no_grad():
        torch.compile(constants, backend="graphmode")(torch.randn(2, 4))
    text = str(programs[0])
    assert "t.add_(1)" in text and "test_program.py" in text and "aten.add_" in text


def test_sizes_stay_symbolic(programs: list[Program]) -> None:
    """A fake kernel that would fix a size stays one opaque call: one program for all sizes."""
    f = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear") + 1  # noqa: E731
    g = torch.compile(f, backend="graphmode", dynamic=True)
    with torch.no_grad():
        for n in range(3, 9):
            x = torch.randn(1, 2, n, 5)
            assert_same(g(x), f(x))
    assert len(programs) == 1


def test_a_users_integers_have_no_end_outside_graphs() -> None:
    def f(x: Tensor, n: int) -> tuple[Tensor, int]:
        return x * 2, n * n * n

    compiled = torch.compile(f, backend="graphmode", dynamic=True)
    x = torch.randn(3)
    with torch.no_grad():
        assert [compiled(x, n)[1] for n in (3, 5, 2**40)] == [27, 125, 2**120]


@torch.compiler.allow_in_graph
def counted_by_hand(x: Tensor) -> Tensor:
    return x + 1


def test_why_calls_outside_graphs_need_python_is_told() -> None:
    compiled = torch.compile(lambda x: counted_by_hand(x * 2), backend="graphmode", options={"mode": "eager"})
    with torch.no_grad():
        for _ in range(5):
            compiled(torch.randn(3, 3))
    ((note, count),) = graphmode.report().notes.items()
    assert note == "a call outside graphs ran as Python: a call of counted_by_hand" and count == 5


def test_a_module_made_in_the_call_leaves_no_call_of_python() -> None:
    f = lambda x: nn.GELU()(x)  # noqa: E731
    compiled = torch.compile(f, backend="graphmode")
    with torch.no_grad():
        for _ in range(5):
            x = torch.randn(3, 3)
            assert_same(compiled(x), f(x))
    assert graphmode.report().notes == {} and graphmode.report().replays >= 3
