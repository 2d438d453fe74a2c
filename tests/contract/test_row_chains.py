"""Runs of small calls that a graph does in one kernel: the bits of the calls, less memory, and a limit by `fuel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import graphmode
from graphmode import _C
from graphmode.runtime.script import script_of

pytestmark = pytest.mark.cpu("it captures on the CPU's graph by name")

DTYPES = [torch.float32, torch.bfloat16]
Program = Callable[..., Sequence[Tensor]]


def same(a: Tensor, b: Tensor) -> bool:
    """Bits, but for those inside a NaN."""
    whole = torch.int32 if a.dtype == torch.float32 else torch.int16
    equal = a.contiguous().view(whole) == b.contiguous().view(whole)
    return a.shape == b.shape and a.dtype == b.dtype and bool((equal | (a.isnan() & b.isnan())).all())


def plan(graph: graphmode.Graph) -> object:
    return graph._graph.plan  # type: ignore[attr-defined]


def check(program: Program, inputs: Sequence[Tensor], fuel: int = 1000) -> graphmode.Graph:
    """Captures, and compares replays on other values with eager's results."""
    with torch.inference_mode():
        given_ = [t.clone() for t in inputs]
        with graphmode.options(poison=True, fuel=fuel), graphmode.Graph() as graph:
            results = program(*given_)
        for scale in (1.0, -3.0, 1e4):
            for mine, first in zip(given_, inputs, strict=True):
                mine.copy_(first.roll(1) * scale)
            want = [t.clone() for t in program(*(t.clone() for t in given_))]
            graph.replay()
            for got, expected in zip(results, want, strict=True):
                assert same(got, expected), f"differs at scale {scale}:\n{graph}"
    return graph


def rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    if dtype != torch.float32:
        x, residual = x.float(), residual.float()
    x = x + residual
    residual = x.to(dtype) if dtype != torch.float32 else x
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    return (x.to(dtype) if dtype != torch.float32 else x) * weight, residual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 576), (1, 16), (3, 17), (4, 100), (7, 2048), (1, 32000), (500, 65), (6, 32000), (2100, 16)],
)
def test_a_norm_is_one_kernel(dtype: torch.dtype, rows: int, columns: int) -> None:
    x, residual = torch.randn(2, rows, columns).to(dtype)
    graph = check(rms_norm, (x, residual, torch.randn(columns).to(dtype)))
    found = plan(graph)
    assert found.chains == 1 and found.held == found.out == found.boxed == 0, str(graph)
    assert found.fused == (11 if dtype == torch.bfloat16 else 7)
    assert str(graph).count("[fused]") == found.fused and "@registers" in str(graph)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [56, 57, 177, 1001])
def test_rows_that_eager_splits_over_threads(threads: int, rows: int) -> None:
    torch.set_num_threads(threads)
    x, residual = torch.randn(2, rows, 577).bfloat16()
    assert plan(check(rms_norm, (x, residual, torch.randn(577).bfloat16()))).fused == 11


def test_a_row_whose_sum_eager_splits_is_left_as_it_is() -> None:
    x, residual = torch.randn(2, 1, 40_000)
    assert plan(check(rms_norm, (x, residual, torch.randn(40_000)))).chains == 0


def test_verdicts_are_those_of_one_row_or_of_any_number() -> None:
    _C.forget_proofs()
    made = []
    for rows in (40, 41, 90, 17, 300, 1, 1):
        before = _C.row_proofs()
        assert plan(check(rms_norm, (*torch.randn(2, rows, 160).bfloat16(), torch.randn(160).bfloat16()))).fused == 11
        made.append(_C.row_proofs() - before)
    assert made[0] > 0 and made[1:5] == [0, 0, 0, 0] and made[5] > 0 and made[6] == 0


def test_a_bfloat16_value_that_is_kept_as_float32_only() -> None:
    """Its rounding goes to float32 memory, where no step may write half of an item."""

    def program(a: Tensor, b: Tensor) -> list[Tensor]:
        z = a + b
        return [z, z.to(torch.bfloat16).float()]

    assert plan(check(program, (torch.randn(3, 64), torch.randn(64)))).fused == 3


def test_what_only_the_chain_reads_takes_no_memory() -> None:
    x, residual, weight = torch.randn(4, 576), torch.randn(4, 576), torch.randn(576)
    one_by_one, together = (plan(check(rms_norm, (x, residual, weight), fuel)) for fuel in (0, 1000))
    assert one_by_one.chains == 0 and one_by_one.arena_bytes >= x.nbytes
    assert together.chains == 1 and together.arena_bytes == 0


def test_fuel_bounds_how_many_runs_become_a_kernel() -> None:
    def program(x: Tensor, w: Tensor) -> list[Tensor]:
        for _ in range(3):
            x = torch.softmax((x * 2 + w).abs(), -1)  # softmax parts the runs
        return [x]

    x, w = torch.randn(2, 64), torch.randn(64)
    assert [plan(check(program, (x, w), fuel)).chains for fuel in (0, 1, 2, 3, 9)] == [0, 1, 2, 3, 3]


def test_rows_of_slices_and_of_broadcast_tensors() -> None:
    """What a model reads of a wider projection: rows that lie apart, heads, one row for all, one number for each."""

    def program(wide: Tensor, weight: Tensor, scale: Tensor, one: Tensor) -> list[Tensor]:
        q, k, _ = wide.split([192, 64, 64], -1)
        q, k = q.unflatten(-1, (3, 64)), k.unflatten(-1, (1, 64))
        q = (q * q.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt() * weight + one) / scale
        k = (k * k.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt() * weight + k[:1]) * -0.5
        return [q.flatten(-2), k - 1]

    graph = check(program, (torch.randn(5, 320), torch.randn(64), torch.rand(5, 3, 1) + 1, torch.tensor(0.25)))
    assert plan(graph).fused >= 12, str(graph)


def test_numbers_that_arithmetic_has_rules_for() -> None:
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 1e-45, 3.4e38, 1.0] * 4)
    x = torch.stack([odd, odd.flip(0), odd.roll(3)])

    def program(x: Tensor, y: Tensor) -> list[Tensor]:
        a = (x * 0.5 + y).relu() - y.abs()
        return [a.to(torch.bfloat16).float() / y, a.sum(-1), a.reciprocal()]

    assert plan(check(program, (x, odd.clone()))).fused >= 5


def test_a_call_with_other_bits_ends_the_run() -> None:
    """MKL's square root is not rounded as the processor's, and eager takes it: what stands around it is fused."""

    def program(x: Tensor) -> list[Tensor]:
        y = (x * x + 1) * 3
        return [(y.sqrt() * 2 + 1).neg()]

    found = plan(check(program, (torch.randn(3, 64),)))
    assert (found.chains, found.fused) in {(1, 7), (2, 6)}  # the first where torch has no MKL


def test_a_call_is_proved_on_more_than_what_the_chain_gives_it() -> None:
    """In a trial on the chain's own numbers each root is one of zero, and each sum one of zeros."""
    x = torch.rand(4, 64) * 100
    check(lambda x: [(x - 10).relu().sqrt() * 2, (x + 1e8).sqrt(), (x - 10).relu().sum(-1)], (x,))
    check(lambda x: [torch.relu(x - 50).rsqrt() * 2, (x * 1e-12).reciprocal() + 1], (x,))


@pytest.mark.parametrize("number", [1e-3, 1e-5, 1.1e-9, 0.1, 3.3, 1e6])
def test_python_numbers_before_and_behind_a_bfloat16(number: float) -> None:
    def program(x: Tensor) -> list[Tensor]:
        return [(number - x) * 1.0, (x - number) * number, (x + number) / number, (number / x) + 1, number * x - 1]

    for x in (torch.randn(4, 64), torch.full((4, 64), number), torch.rand(4, 64) * 4 * number):
        check(program, (x.bfloat16(),))


def test_two_numbers_that_are_printed_alike_are_two_proofs() -> None:
    x = torch.full((4, 32), 16777216.0)
    for number in (16777216.0, 16777220.0):
        check(lambda x, number=number: [(x - number) * 1.0, (number - x) * 1.0], (x,))
        check(lambda x, number=number: [(x - number) * 1.0, (number - x) * 1.0], (x.bfloat16(),))


def test_copies_keep_every_bit() -> None:
    bits = torch.arange(-32768, 32768, 97, dtype=torch.int32).to(torch.int16)[:640].view(20, 32)
    with torch.inference_mode():
        x = bits.view(torch.bfloat16).clone()
        with graphmode.Graph() as graph:
            y = x.clone().clone()
            z = x.neg().abs().clone()
        graph.replay()
        assert torch.equal(y.view(torch.int16), bits)
        assert torch.equal(z.view(torch.int16), x.neg().abs().view(torch.int16))


def test_a_few_items_of_something_large_are_as_good_as_any() -> None:
    large = torch.randn(2, 5_000_000)
    assert plan(check(lambda x: [x[:, :64] * 2 + 1], (large,))).fused == 2


def test_results_are_the_callers_and_weights_are_read_anew() -> None:
    class Norms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64, dtype=torch.bfloat16))

        def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
            return rms_norm(x, residual, self.weight)

    model = Norms()
    compiled = torch.compile(model, backend="graphmode", options={"require": True})
    held = []
    with torch.inference_mode():
        for i in range(6):
            x, residual = torch.randn(2, 3, 64, dtype=torch.bfloat16)
            if i == 4:
                model.weight = torch.nn.Parameter(torch.randn(64, dtype=torch.bfloat16))
            held.append((compiled(x, residual), [t.clone() for t in model(x, residual)]))
    for got, want in held:
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert graphmode.report().replays >= 2


# --- programs made at random ------------------------------------------------------------------------------------------

UNARY = ["neg", "abs", "relu", "rsqrt", "reciprocal", "square", "sqrt", "bfloat16", "float", "tanh", "clone"]
BINARY = ["add", "sub", "mul", "div"]


class Chance:
    """A program drawn by hypothesis: each line makes one more value, of which some are kept."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.rows = draw(st.sampled_from([(1,), (4,), (2, 3), (1100,)]))
        self.threads = draw(st.sampled_from([1, 2, 3]))
        self.columns = draw(st.sampled_from([16, 33, 64, 130]))
        self.dtype = draw(st.sampled_from(DTYPES))
        self.lines = [
            (
                draw(st.sampled_from([*UNARY, *BINARY, *BINARY, "mean", "sum", "rows", "view", "in-place"])),
                draw(st.integers(0, 30)),
                draw(st.integers(0, 30)),
                draw(st.sampled_from([None, None, 0.5, 3])),
                draw(st.booleans()),
            )
            for _ in range(draw(st.integers(3, 14)))
        ]

    def inputs(self) -> list[Tensor]:
        wide = torch.randn(*self.rows, 2 * self.columns).to(self.dtype)
        return [
            wide,
            torch.randn(*self.rows, self.columns),
            torch.randn(self.columns).to(self.dtype),
            torch.rand(*self.rows, 1) + 0.5,
        ]

    def __call__(self, wide: Tensor, plain: Tensor, column: Tensor, row: Tensor) -> list[Tensor]:
        values = [wide[..., : self.columns], wide[..., self.columns :], plain, column, row]
        kept = []
        for op, i, j, number, keep in self.lines:
            a, b = values[i % len(values)], values[j % len(values)]
            if op in BINARY:
                made = getattr(torch, op)(a, b if number is None else number)
            elif op in ("mean", "sum"):
                made = getattr(a.float(), op)(-1, keepdim=True)
            elif op == "rows":
                made = a.flip(0) * 1
            elif op == "view":
                made = a.unsqueeze(0).squeeze(0)
            elif op == "in-place":
                made = a.clone().mul_(2)
            else:
                made = getattr(a, op)()
            values.append(made)
            if keep or op == "in-place":
                kept.append(made)
        return [*kept, values[-1].clone()]


def drawn(data: st.DataObject) -> tuple[Chance, list[Tensor]]:
    """A program with its inputs, and its number of threads set."""
    program = Chance(data.draw)
    torch.set_num_threads(program.threads)
    torch.manual_seed(1)
    return program, program.inputs()


@settings(max_examples=150)
@given(st.data())
def test_random_programs_have_eagers_bits(data: st.DataObject) -> None:
    check(*drawn(data))


@settings(max_examples=100)
@given(st.data())
def test_random_programs_have_eagers_bits_outside_graphs(data: st.DataObject) -> None:
    program, inputs = drawn(data)
    script = script_of(make_fx(program)(*inputs), "tttt", 1000)
    with torch.inference_mode():
        for scale in (1.0, 1.0, -3.0, 1e4):  # learnt from the first
            given_ = [t.roll(1) * scale for t in inputs]
            results, want = script.run(tuple(given_)), program(*given_)
            assert results is not None and all(map(same, results, want)), f"differs at scale {scale}"


def test_random_programs_are_fused() -> None:
    """The tests above would pass if nothing were."""
    fused = 0

    @settings(max_examples=40)
    @given(st.data())
    def count(data: st.DataObject) -> None:
        nonlocal fused
        fused += plan(check(*drawn(data))).fused

    count()
    assert fused > 100
