"""C10: autocast, grad mode, inference mode, deterministic mode, thread count, default dtype give eager's results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from .ways import Way, assert_same, beside_eager, both_ways, replayed

F = torch.nn.functional


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


@both_ways()
def test_c10_autocast_around_the_call_with_weights_updated_between(way: Way) -> None:
    linear = nn.Linear(8, 8)
    f = lambda x: torch.relu(linear(x)) @ x.t()  # noqa: E731
    g = way(f)
    modes = [torch.bfloat16] * 5 + [None] * 4 + [torch.float16] * 4 + [torch.bfloat16] * 2
    with torch.no_grad(), replayed(7):
        for i, dtype in enumerate(modes):
            x = torch.randn(4, 8)
            if i % 3 == 2:
                linear.weight.add_(0.5)
            with autocast(dtype):
                got = g(x)
            with autocast(dtype):
                assert_same(got, f(x))


@both_ways()
def test_c10_autocast_held_over_many_calls_sees_new_weights(way: Way) -> None:
    linear = nn.Linear(8, 8)
    g = way(linear)
    with torch.no_grad(), autocast(torch.bfloat16), replayed(4):
        for _ in range(7):
            linear.weight.mul_(1.5)
            x = torch.randn(4, 8)
            got = g(x)
            torch.clear_autocast_cache()
            assert_same(got, linear(x))


INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, x).relu() @ x,
    "bilinear": lambda x: F.bilinear(x, x, x[None].expand(30, 30, 30)),
    "pinv": torch.linalg.pinv,
    "cdist": lambda x: torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist"),
    "matrix_exp": torch.matrix_exp,
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    "einsum": lambda x: torch.einsum("ij,jk->ik", x, x),
}


@both_ways()
@pytest.mark.parametrize("name", INSIDE)
def test_c10_autocast_inside_the_model(way: Way, name: str) -> None:
    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return INSIDE[name](x)

    with torch.no_grad():
        beside_eager(way, f, [(torch.randn(30, 30) * 0.1,) for _ in range(5)])


@both_ways()
def test_c10_autocast_switched_off_inside(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        y = x @ x
        with torch.autocast("cpu", enabled=False):
            return (y.float() @ x).sum(-1)

    with torch.no_grad(), autocast(torch.bfloat16), replayed(3):
        beside_eager(way, f, [(torch.randn(6, 6),) for _ in range(5)])


@both_ways()
def test_c10_grad_mode_switched_between_calls(way: Way) -> None:
    w = torch.randn(3, requires_grad=True)
    g = way(lambda x: (x * w).exp())
    for i in range(12):
        x = torch.randn(3)
        with torch.set_grad_enabled(i % 3 == 0):
            got, want = g(x), (x * w).exp()
        assert_same(got, want)
        assert got.requires_grad == want.requires_grad


@both_ways()
def test_c10_no_grad_inside_the_model(way: Way) -> None:
    w = torch.randn(3, requires_grad=True)

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            y = x * w
        return y, x * w

    g = way(f)
    for _ in range(5):
        y, z = g(torch.randn(3))
        assert not y.requires_grad and z.requires_grad


@both_ways()
@pytest.mark.parametrize("break_inside", [False, True])
def test_c10_enable_grad_inside_the_model(way: Way, break_inside: bool) -> None:
    w = torch.randn(3, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x * w
            return y + torch.nonzero(x).sum() if break_inside else y

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), torch.no_grad():
        g = way(f)
        for _ in range(5):
            x = torch.randn(3)
            got = g(x)
            assert_same(got, f(x))
            assert got.requires_grad


@both_ways()
def test_c10_inference_mode_around_the_call(way: Way) -> None:
    g = way(lambda x: (torch.exp(x), x[1:], x))
    for i in range(12):
        x = torch.randn(4)
        with torch.inference_mode(i % 2 == 0):
            got, want = g(x), (torch.exp(x), x[1:], x)
        assert_same(got, want)
        assert [t.is_inference() for t in got] == [t.is_inference() for t in want]


@both_ways()
def test_c10_inference_mode_inside_the_model(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.exp(x)

    g = way(f)
    for _ in range(5):
        assert g(torch.randn(3)).is_inference()


@both_ways()
def test_c10_set_num_threads_between_calls_gives_eager_s_partitions(way: Way) -> None:
    f = lambda x: (x.sum(), x.mean(0), torch.atan2(x, x.flip(0)), x.abs().pow(0.3))  # noqa: E731
    g, x = way(f), torch.randn(400, 300)
    with replayed(6):
        for i in range(16):
            torch.set_num_threads(1 + i // 4 % 2)
            assert_same(g(x), f(x))


@both_ways()
def test_c10_deterministic_mode_flips(way: Way) -> None:
    index = torch.tensor([0, 1, 0, 2, 0])
    f = lambda x: torch.zeros(3).index_add(0, index, x) + torch.zeros(3).scatter_add(0, index, x)  # noqa: E731
    g = way(f)
    with replayed(4):
        for i in range(12):
            torch.use_deterministic_algorithms(i // 3 % 2 == 1)
            x = torch.randn(5)
            assert_same(g(x), f(x))


@both_ways()
def test_c10_the_default_dtype_changes(way: Way) -> None:
    f = lambda x: x + torch.full((3,), 0.1)  # noqa: E731
    g = way(f)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float64, torch.float16):
        torch.set_default_dtype(dtype)
        for _ in range(4):
            x = torch.ones(3, dtype=torch.bfloat16)
            assert_same(g(x), f(x))


@both_ways()
def test_c10_a_grad_mode_that_the_model_leaves_set_stays_set(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return x + 1

    g = way(f)
    for _ in range(5):
        torch.set_grad_enabled(True)
        g(torch.ones(3))
        assert not torch.is_grad_enabled()
