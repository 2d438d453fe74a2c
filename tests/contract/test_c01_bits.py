"""C1: reduce-overhead runs eager's kernels, and gives eager's bits. Owns small nets; op_db is parity's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .ways import Way, assert_same, beside_eager, both_ways, by_graphmode_compile, replayed

F = torch.nn.functional


def mlp(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8), nn.Softmax(-1)).to(dtype)


@both_ways()
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.cpu("torch_npu makes a module's float64 float32")),
    ],
)
def test_c1_a_net_gives_eager_s_bits(way: Way, dtype: torch.dtype) -> None:
    net = mlp(dtype).eval()
    with torch.no_grad(), replayed(4):
        beside_eager(way, net, [(torch.randn(5, 16, dtype=dtype),) for _ in range(6)])


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "pointwise": lambda x, y: torch.where(x > y, x.exp() - 1, y.tanh()) * 0.1 + torch.atan2(x, y),
    "reductions": lambda x, y: x.sum(-1) + y.mean(-1) + x.var(-1) + y.amax(-1),
    "norms": lambda x, y: F.layer_norm(x, (x.shape[-1],)) + F.softmax(y, -1) + F.rms_norm(x, (x.shape[-1],)),
    "matmul": lambda x, y: F.linear(x, y) @ x + torch.einsum("ij,kj->ik", x, y) @ y,
    "indexing": lambda x, y: x[:, ::2].flip(0) + y.roll(1, 0)[:, ::2] + x.gather(0, y.argsort(0))[:, ::2],
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None, None], y[None, None], x[None, None]),
    "integers": lambda x, y: (x * 8).to(torch.int64) // 3 + (y * 8).to(torch.int32) % 5,
    "complex": lambda x, y: torch.view_as_real(torch.complex(x, y).conj() * torch.complex(y, x)),
}


@both_ways()
@pytest.mark.parametrize("name", FUNCTIONS)
def test_c1_functions_give_eager_s_bits(way: Way, name: str) -> None:
    with replayed(3):
        beside_eager(way, FUNCTIONS[name], [(torch.randn(6, 6), torch.randn(6, 6)) for _ in range(5)])


@both_ways()
@pytest.mark.parametrize("name", ["pointwise", "reductions", "norms"])
@pytest.mark.parametrize("threads", [1, 2])
def test_c1_holds_where_kernels_split_their_work(way: Way, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with replayed(2):
        beside_eager(way, FUNCTIONS[name], [(torch.randn(300, 300), torch.randn(300, 300)) for _ in range(4)])


@both_ways()
def test_c1_not_a_number_and_signed_zero_stay_what_they_were(way: Way) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-45])
    with replayed(3):
        beside_eager(
            way, lambda x: (x * 1.0, x + -0.0, torch.maximum(x, x.flip(0)), -x), [(odd.roll(i),) for i in range(5)]
        )


@both_ways()
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: nn.GRU(8, 8, batch_first=True), (2, 3, 8)),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (2, 1, 8, 8)),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (2, 3, 8)),
    ],
    ids=["gru", "convolution", "transformer layer"],
)
def test_c1_modules_with_state_of_their_own_give_eager_s_bits(
    way: Way, net: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eager's own fast path for transformers, which Dynamo does not take, has other bits on an NPU.
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad(), replayed(2):
        beside_eager(way, net(), [(torch.randn(shape),) for _ in range(4)])


@pytest.mark.cpu("torch_npu refuses channels_last")
@both_ways()
def test_c1_memory_formats_and_strides_are_eager_s(way: Way) -> None:
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with replayed(3):
        g = beside_eager(way, lambda x: (x * 2, torch.cat([x]), x.t_() if x.dim() == 2 else x.mT + 1), [(x,)] * 5)
    assert_same(g(x)[0].stride(), (x * 2).stride())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [-1, 0, (0, -1), None])
@pytest.mark.parametrize("shape", [(1, 576), (40_000, 3), (3, 40_000), (0, 4)])
def test_c1_a_mean(shape: tuple[int, int], dims: Any, keepdim: bool, dtype: torch.dtype) -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:  # of what lies close, and of what has strides
        return (x * 2).mean(dim=dims, keepdim=keepdim), (x * 2).t().mean(dim=dims, keepdim=keepdim)

    with torch.no_grad(), replayed(3):
        beside_eager(by_graphmode_compile, f, [(torch.randn(shape, dtype=dtype),) for _ in range(5)])
