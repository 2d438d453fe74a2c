"""What equals what: modes of torch, gradients and limits of Dynamo, around what `graphmode.compile` made."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphmode import _C

from .ways import assert_same, by_graphmode_compile, reasons, replayed


class Doubled(torch.overrides.TorchFunctionMode):
    """Doubles what `torch.exp` gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.exp else out


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@contextlib.contextmanager
def matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


MODES: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Any]]] = {
    "default dtype": (lambda: default_dtype(torch.float64), lambda x: torch.ones(2) * 2),
    "default device": (lambda: torch.device("meta"), lambda x: torch.ones(2).device),
    "function mode": (Doubled, torch.exp),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda x: x @ x),
    "autocast dtype": (lambda: torch.autocast("cpu", torch.float16), lambda x: x @ x),
    "inference mode": (torch.inference_mode, lambda x: (x + 1).is_inference()),
    "grad mode": (torch.enable_grad, lambda x: x * (2.0 if torch.is_grad_enabled() else 3.0)),
    "flush denormal": (flushed, lambda x: x * 1e-39),
    "mkldnn": (lambda: torch.backends.mkldnn.flags(enabled=False), lambda x: x @ x),
    "matmul precision": (matmul_precision, lambda x: (x @ x) * len(torch.get_float32_matmul_precision())),
    "sdpa": (
        lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
        lambda x: nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_compile_sees_a_mode_switched_between_calls(name: str) -> None:
    mode, f = MODES[name]
    g, x = by_graphmode_compile(f), torch.randn(16, 16)
    with torch.no_grad():
        for i in range(16):
            with mode() if i // 4 % 2 else contextlib.nullcontext():
                assert_same(g(x), f(x))


def test_modes_that_choose_kernels_are_in_the_signature() -> None:
    names = ("default dtype", "autocast", "inference mode", "flush denormal", "mkldnn", "matmul precision", "sdpa")
    for name in names:  # torch's setters leave "never set" for good: what is compared comes after
        with MODES[name][0]():
            pass
    seen = {_C.mode_bits()}
    for name in names:
        with MODES[name][0]():
            seen.add(_C.mode_bits())
    assert len(seen) == 8
    assert _C.mode_bits() in seen


def test_a_mode_that_watches_every_call_sees_them_all_and_is_counted() -> None:
    seen: list[Any] = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    g, x = by_graphmode_compile(lambda x: x.exp()), torch.ones(3)
    for _ in range(4):
        g(x)
    with Seen():
        assert_same(g(x), x.exp())
    assert any("looks at the call" in r for r in reasons())
    with replayed():
        g(x)


def test_gradients_are_counted_and_captured_once_they_are_off() -> None:
    net = nn.Linear(3, 3)
    g, x = by_graphmode_compile(net), torch.randn(2, 3)
    for _ in range(20):
        out = g(x)
        assert out.requires_grad
        out.sum().backward()
    assert any("gradients" in r for r in reasons())
    assert not any("Dynamo's guards stay" in r for r in reasons())
    with torch.no_grad(), replayed(2):
        for _ in range(5):
            assert_same(g(x), net(x))


def test_a_recompile_limit_is_counted_and_gives_right_results() -> None:
    net = types.SimpleNamespace(name="0")
    f = lambda x: x * len(net.name)  # noqa: E731
    g, x = by_graphmode_compile(f), torch.ones(3)
    with torch._dynamo.config.patch(recompile_limit=3):
        for i in range(12):
            net.name = "x" * i
            assert_same(g(x), f(x))
    assert any("recompile limit" in r for r in reasons())


def test_objects_that_are_new_at_each_call_end_in_a_counted_reason() -> None:
    f = lambda x, t: x * t.k  # noqa: E731
    g, x = by_graphmode_compile(f), torch.ones(3)
    for _ in range(100):
        assert_same(g(x, types.SimpleNamespace(k=2.0)), x * 2.0)
    assert any("another one at every call" in r for r in reasons())


def test_many_constants_are_not_taken_for_new_objects() -> None:
    g, x = by_graphmode_compile(lambda x, k: x + 1 if k == "a" else x * len(k)), torch.ones(3)
    names = ["a" * i for i in range(1, 7)]
    with replayed(6):
        for _ in range(4):
            for k in names:
                g(x, k)
    assert not reasons()
