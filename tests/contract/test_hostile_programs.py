"""Programs that do to tensors what few programs do: each must equal eager, call by call, or run live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .ops import Switches
from .ways import Way, assert_same, beside_eager, both_ways, counted

F = torch.nn.functional
ops = torch.ops.gm_contract
Make = Callable[[], tuple[Any, ...]]


def rows() -> tuple[Tensor]:
    return (torch.randn(3, 4),)


def resized_inside(x: Tensor) -> Tensor:
    y = torch.empty(0)
    y.resize_(x.shape)
    y.copy_(x)
    return y * 2


def out_into_an_input(x: Tensor, out: Tensor) -> Tensor:
    torch.add(x, 1, out=out)
    return out * 2


def out_into_a_temporary(x: Tensor) -> Tensor:
    t = torch.zeros(3, 4)
    torch.mul(x, x, out=t)
    return t.sum(0)


def foreach(a: Tensor, b: Tensor) -> list[Tensor]:
    torch._foreach_mul_([a, b], 2.0)
    torch._foreach_addcmul_([a], [b], [b], value=0.5)
    return torch._foreach_add([a, b], [b, a])


def constants(x: Tensor) -> tuple[Tensor, Tensor]:
    table = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    count = torch.tensor(0)
    count += 1
    table[0, 1] += 1
    return x * table, count


def factories(x: Tensor) -> Tensor:
    return x + torch.arange(4) + torch.linspace(0, 1, 4) + torch.eye(3, 4) + torch.full((4,), 0.1) + torch.ones_like(x)


def nested(x: Tensor) -> tuple[Any, ...]:
    y = x + 1
    return (y, (y[0], {"a": [y.t(), (x, 3)]}), None, "s")


def expanded_write(x: Tensor) -> Tensor:
    return x.expand(3, 3, 4).clone().mul_(2)


def swaps(a: Tensor, b: Tensor) -> None:
    t = a.clone()
    a.copy_(b)
    b.copy_(t)


def shifted_copy(x: Tensor) -> Tensor:
    x[1:] = x[:-1].clone()
    x[0] += x[-1]
    return x.flip(0)


def bits(x: Tensor) -> tuple[Tensor, ...]:
    z = torch.complex(x, -x)
    w = z.conj()
    return w * 2, w.imag, torch._neg_view(x) + 1, w.real, torch.view_as_real(z)[..., 0]


def booleans(x: Tensor) -> tuple[Tensor, ...]:
    m = x > 0
    m2 = m.logical_not()
    m2 &= ~m
    return m, m2, m ^ m2, torch.where(m, x, 0), m.sum(), m.any(1)


def integers(x: Tensor) -> tuple[Tensor, ...]:
    i = (x * 10).to(torch.int8)
    return i, i // 3, i % 3, i << 1, i.to(torch.int64).cumsum(0), i.view(torch.uint8)


def empty_and_scalar(x: Tensor) -> tuple[Tensor, ...]:
    e = x[:0]
    return e, e.sum(), torch.cat([e, x]), x.sum() * 2, x[0, 0] + 1, e.mean(), x.new_zeros(0, 3) @ x


def in_place_chain_of_views(x: Tensor) -> Tensor:
    y = x.clone()
    y.t()[1:].view(3, 3).diagonal().fill_(7)
    y.unfold(1, 2, 1)[:, 0].mul_(3)
    return y


def sparse(x: Tensor) -> Tensor:
    return torch.sparse.mm(x.relu().to_sparse(), x.t()) + 1


def mkldnn(x: Tensor) -> Tensor:
    return (x.to_mkldnn() + x.to_mkldnn()).to_dense() * 2


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.1, 3, torch.qint8).dequantize() + x


def set_inside(x: Tensor) -> Tensor:
    y = torch.zeros(3, 4)
    y.set_(x.clone())
    return y + 1


def custom_op_writes(counter: Tensor, x: Tensor) -> Tensor:
    return ops.count_from(counter, x[1:]) + counter


def random_in_place(x: Tensor) -> Tensor:
    return x.normal_() + torch.randn_like(x) + F.dropout(x, 0.5) + x.bernoulli(0.5)


def sorts(x: Tensor) -> tuple[Tensor, ...]:
    values, indices = x.sort(1)
    top = x.topk(2)
    return values, indices, *top, x.argmax(1), x.median(1)[0], torch.searchsorted(values, x)


PROGRAMS: dict[str, tuple[Callable[..., Any], Make]] = {
    "resize_ inside": (resized_inside, rows),
    "out= into an input": (out_into_an_input, lambda: (torch.randn(3, 4), torch.zeros(3, 4))),
    "out= into the input itself": (lambda x: torch.exp(x, out=x), rows),
    "out= into a temporary": (out_into_a_temporary, rows),
    "foreach": (foreach, lambda: (torch.randn(3), torch.randn(3))),
    "constants made inside": (constants, rows),
    "factories": (factories, rows),
    "nested results": (nested, rows),
    "an expanded tensor": (expanded_write, rows),
    "swap": (swaps, lambda: (torch.randn(3), torch.randn(3))),
    "a shifted copy onto itself": (shifted_copy, rows),
    "math bits": (bits, rows),
    "booleans": (booleans, rows),
    "integers": (integers, rows),
    "no elements, no dimensions": (empty_and_scalar, rows),
    "writes through views of views": (in_place_chain_of_views, rows),
    "sparse inside": (sparse, rows),
    "mkldnn inside": (mkldnn, rows),
    "quantised inside": (quantized, rows),
    "set_ inside": (set_inside, rows),
    "a Python op that writes": (custom_op_writes, lambda: (torch.zeros(()), torch.randn(3, 4))),
    "random in place": (random_in_place, rows),
    "sorts": (sorts, rows),
    "a write through detach": (lambda x: (x.detach().add_(1), x * 2), rows),
    "double": (lambda x: (x.double() @ x.double().t()).float(), rows),
    "half": (lambda x: F.layer_norm(x.half(), (4,)).softmax(-1), rows),
    "complex": (lambda x: torch.fft.ifft(torch.fft.fft(x) * 1j).abs(), rows),
}
_CPU_ALONE = {
    "sparse inside": pytest.mark.cpu("torch_npu has no sparse products"),
    "mkldnn inside": pytest.mark.cpu("a layout of the CPU's"),
    "quantised inside": pytest.mark.cpu("PyTorch's quantised tensors are the CPU's"),
}


@both_ways()
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", [pytest.param(n, marks=_CPU_ALONE.get(n, ())) for n in PROGRAMS])
def test_a_hostile_program_equals_eager(way: Way, name: str) -> None:
    f, make = PROGRAMS[name]
    with torch.no_grad():
        beside_eager(way, f, [make() for _ in range(6)])


@both_ways()
@pytest.mark.parametrize("name", ["nested results", "math bits", "writes through views of views", "sorts"])
def test_a_hostile_program_equals_eager_under_every_mode(way: Way, name: str) -> None:
    f, make = PROGRAMS[name]
    g = way(f)
    for i in range(12):
        args = make()
        with torch.inference_mode(i % 3 == 0), torch.set_grad_enabled(i % 3 == 1):
            assert_same(g(*args), f(*args))


@both_ways()
def test_a_call_that_diverges_goes_on_with_views_numbers_and_constants(way: Way) -> None:
    """What the rest needs lies in the arena, in an input, in a result, or is no tensor at all."""

    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a = torch.exp(x)
        half, rest = a.split(2)
        view = y[1:]
        table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        y.add_(1)
        b = ops.other_strides(a * 2)
        y.mul_(2)
        table += 1
        return half + 1, rest * table, view + b[:3], b, a.sum() * x.shape[0], y

    g = way(f)
    with torch.no_grad():
        try:
            for i in range(10):
                Switches.columns_first = i in (4, 6, 7)
                x, y = torch.randn(4, 4), torch.randn(4, 4)
                mine = y.clone()
                assert_same(g(x, mine), f(x, y))
                assert_same(mine, y)
        finally:
            Switches.columns_first = False


@pytest.mark.cpu("a device's graph has no custom op that could diverge")
@both_ways()
def test_a_call_that_diverges_is_counted_once_and_is_a_break_from_then_on(way: Way) -> None:
    g, x = way(lambda x: ops.other_strides(x.exp()) * 2), torch.randn(3, 4)
    try:
        with counted() as since:
            for i in range(12):
                Switches.columns_first = i == 5
                assert_same(g(x), ops.other_strides(x.exp()) * 2)
        assert since.live_calls == 1 and since.breaks == 6
    finally:
        Switches.columns_first = False
