"""Custom ops: those without results take some inputs as each call gives them; none is opened, whatever its key."""

from __future__ import annotations

import pytest
import torch
import torch.fx as fx
from torch import Tensor

from graphmode.options import Options
from graphmode.program.effects import handed_on
from graphmode.runtime.region import Region

from . import ops as _registers  # noqa: F401
from .ways import Function, Way, assert_same, beside_eager, both_ways, counted, replayed

ops = torch.ops.gm_contract


def writes_unseen(x: Tensor, out: Tensor) -> Tensor:
    y = torch.empty_like(x)
    ops.double_unseen(x + 1, y)
    ops.double_unseen(x, out)
    return y.reshape(-1) * 3


@pytest.mark.cpu("the op is written in NumPy, for tensors of the host")
@both_ways()
def test_an_op_that_computes_in_a_composite_s_place_runs_at_each_replay(way: Way) -> None:
    with replayed(3):
        beside_eager(way, writes_unseen, ([torch.randn(3, 4), torch.zeros(3, 4)] for _ in range(6)))


VIEWS: dict[str, tuple[Function, Function]] = {  # of a fresh (3, 4), and of what is written there
    "reshape": (lambda y: y.reshape(-1), lambda x: x.reshape(-1)),
    "flatten": (lambda y: y.flatten(), lambda x: x.flatten()),
    "narrow": (lambda y: y.narrow(0, 1, 2), lambda x: x[1:]),
    "movedim": (lambda y: y.movedim(0, 1), lambda x: x.t()),
    "chunk": (lambda y: y.chunk(2, 1)[1], lambda x: x[:, 2:]),
    "view": (lambda y: y.view(12), lambda x: x.reshape(12)),
}


@both_ways()
@pytest.mark.parametrize("view", VIEWS)
def test_an_op_may_be_the_first_to_write_memory_and_through_a_view(way: Way, view: str) -> None:
    view_of, part_of = VIEWS[view]

    def written_through_a_view(x: Tensor) -> Tensor:
        y = torch.empty(3, 4)
        ops.double_into(part_of(x + 1), view_of(y))
        return view_of(y) * 3

    with replayed(3):
        beside_eager(way, written_through_a_view, ([torch.randn(3, 4)] for _ in range(6)))


@both_ways()
def test_an_op_may_write_memory_whose_axes_were_swapped_in_place(way: Way) -> None:
    def swapped(x: Tensor) -> Tensor:
        y = torch.empty(4, 3)
        y.swapaxes_(0, 1)
        ops.double_into(x, y)
        return y + 0

    with replayed(5):
        beside_eager(way, swapped, ([torch.randn(3, 4)] for _ in range(8)))


def region_that_puts() -> Region:
    """(x, indices, out) -> exp(x), with ops.put(exp(x), indices, out) on the way."""
    graph = fx.Graph()
    x, indices, out = (graph.placeholder(name) for name in ("x", "indices", "out"))
    for node in (x, indices, out):
        node.meta["val"] = torch.empty(0, device="meta")
    y = graph.call_function(torch.ops.aten.exp.default, (x,))
    graph.call_function(ops.put.default, (y, indices, out))
    graph.output((y,))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    return Region(gm, Options(poison=True), lambda args: gm(*args))


def test_inputs_that_only_ops_without_results_take_are_handed_on() -> None:
    region = region_that_puts()
    assert handed_on(region.gm) == {1, 2}


@pytest.mark.cpu("a device's graph copies its inputs: none is handed on")
def test_what_is_handed_on_may_have_any_size_and_place() -> None:
    region = region_that_puts()
    with counted() as since:
        for size in (1, 3, 2, 5, 4, 0):
            x, out = torch.randn(4), torch.zeros(size + 7)[2:]
            indices = torch.randperm(size + 5)[:size]
            want = torch.zeros(size + 5)
            want[indices] = torch.exp(x).sum()
            version = out._version
            (y,) = region.run(x, indices, out)
            assert_same(y, torch.exp(x))
            assert torch.equal(out, want)
            assert out._version > version
    assert (since.captures, since.replays, since.live_calls) == (1, 4, 0)


@pytest.mark.cpu("a device's graph copies its inputs: none is handed on")
def test_what_is_handed_on_still_selects_a_graph_by_its_dtype() -> None:
    region = region_that_puts()
    with counted() as since:
        for dtype in (torch.float32, torch.float64) * 3:
            out = torch.zeros(5, dtype=dtype)
            x = torch.randn(4)
            region.run(x, torch.tensor([1]), out)
            assert torch.equal(out[1], torch.exp(x).sum().to(dtype))
    assert (since.captures, since.replays) == (2, 2)


def test_one_tensor_at_two_places_that_are_handed_on_may_be_two_later() -> None:
    graph = fx.Graph()
    x, a, b, out = (graph.placeholder(name) for name in ("x", "a", "b", "out"))
    for node in (x, a, b, out):
        node.meta["val"] = torch.empty(0, device="meta")
    y = graph.call_function(torch.ops.aten.exp.default, (x,))
    for indices in (a, b):
        graph.call_function(ops.put.default, (y, indices, out))
    graph.output((y,))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    region = Region(gm, Options(poison=True), lambda args: gm(*args))
    one, other = torch.tensor([1]), torch.tensor([2])
    for first, second in [(one, one)] * 4 + [(one, other)] * 4 + [(other, one), (one, one)]:
        mine, want = torch.zeros(4), torch.zeros(4)
        region.run(x := torch.randn(3), first, second, mine)
        gm(x, first, second, want)
        assert torch.equal(mine, want)


class Name(torch._opaque_base.OpaqueBase):
    """A value that custom ops take as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __fx_repr__(self) -> tuple[str, dict[str, type]]:
        return f"Name({self.text!r})", {"Name": Name}


torch._library.opaque_object.register_opaque_type(Name, typ="value", hoist=True)
SEEN: list[str] = []


@torch.library.custom_op("gm_contract::named", mutates_args=())
def named(x: Tensor, name: Name) -> Tensor:
    SEEN.append(name.text)
    return x + len(name.text)


@named.register_fake
def _named_fake(x: Tensor, name: Name) -> Tensor:
    return torch.empty_like(x)


def calls_named(x: Tensor, name: Name) -> Tensor:
    return named(x * 2, name) * 2


@both_ways()
def test_opaque_values_select_a_graph_by_what_they_are(way: Way) -> None:
    g = way(calls_named)
    x = torch.randn(3)
    with replayed(4):
        for i, text in enumerate(["a", "a", "a", "bcd", "bcd", "bcd", "a", "bcd"]):
            SEEN.clear()
            assert_same(g(x, Name(text)), (x * 2 + len(text)) * 2, f"call {i}")
            assert [text] == SEEN


class Tally(torch._opaque_base.OpaqueBase):
    """A reference: each is another one, whatever it says."""

    def __init__(self) -> None:
        self.calls = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally)

    def __hash__(self) -> int:
        return 1


torch._library.opaque_object.register_opaque_type(Tally, typ="reference")


@torch.library.custom_op("gm_contract::tallied", mutates_args=())
def tallied(x: Tensor, tally: Tally) -> Tensor:
    tally.calls += 1
    return x + tally.calls


@tallied.register_fake
def _tallied_fake(x: Tensor, tally: Tally) -> Tensor:
    return torch.empty_like(x)


def test_opaque_references_are_told_apart_though_they_are_equal() -> None:
    g = torch.compile(lambda x, tally: tallied(x * 2, tally) * 3, backend="graphmode")
    one, other, x = Tally(), Tally(), torch.ones(3)
    for i in range(4):
        assert_same(g(x, one), (x * 2 + i + 1) * 3)
    for i in range(4):
        assert_same(g(x, other), (x * 2 + i + 1) * 3)
    assert (one.calls, other.calls) == (4, 4)


def test_a_tensor_size_is_no_call_of_the_program() -> None:
    def sized(x: Tensor) -> Tensor:
        return x.new_zeros(torch.Size((x.shape[0], 2))) + x.sum()

    g = torch.compile(sized, backend="graphmode", dynamic=True)
    with replayed(2):
        for _ in range(4):
            x = torch.randn(5)
            assert_same(g(x), sized(x))
    from graphmode import report

    assert not [note for note in report().notes if "without passes" in note]


@pytest.mark.parametrize("layers", [3, 40])
def test_data_of_a_weight_is_read_in_the_program(layers: int) -> None:
    weights = [torch.randn(4) for _ in range(layers)]

    def scaled(x: Tensor, weights: list[Tensor]) -> Tensor:
        for w in weights:
            x = torch.tanh(x * w.data)
        return x

    from graphmode import report

    g = torch.compile(scaled, backend="graphmode")
    with replayed(2):
        for _ in range(4):
            x = torch.randn(2, 4)
            assert_same(g(x, weights), scaled(x, weights))
    assert not [note for note in report().notes if "without passes" in note]
