"""Fusions onto torch_npu's operators: unmodified models in max-autotune, against eager on the same device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graphmode

HALF = (torch.float16, torch.bfloat16)


def check(f: Callable[..., Any], *inputs: Tensor, fused: Mapping[str, int], **tolerance: float) -> None:
    g = torch.compile(f, backend="graphmode", options={"mode": "max-autotune"})
    for _ in range(4):
        given = [i.npu() for i in inputs]
        torch.testing.assert_close(g(*given), f(*given), **tolerance)
    report = graphmode.report()
    assert report.fused == fused, (report.fused, report.notes)
    assert report.replays == 2, report.fallbacks


def norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_norms(dtype: torch.dtype) -> None:
    def f(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        first = norm(x, weight)
        x = first + y
        return norm(x, weight), x

    x, y, weight = torch.randn(3, 32, dtype=dtype), torch.randn(3, 32, dtype=dtype), torch.randn(32, dtype=dtype)
    tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    check(f, x, y, weight, fused={"rms_norm": 1, "add_rms_norm": 1}, **tolerance)


@pytest.mark.parametrize("dtype", HALF)
def test_rotary_embedding(dtype: torch.dtype) -> None:
    def f(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated = torch.cat((-q[..., 16:], q[..., :16]), -1)
        return q * cos.unsqueeze(1) + rotated * sin.unsqueeze(1)

    q, cos, sin = torch.randn(2, 4, 5, 32), torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    check(f, q.to(dtype), cos.to(dtype), sin.to(dtype), fused={"rotary": 1}, rtol=2e-2, atol=3e-2)


def test_gates() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        return F.silu(a) * b, F.gelu(x[..., :16]) * x[..., 16:], x[..., :16] * F.gelu(x[..., 16:], approximate="tanh")

    x = torch.randn(3, 32, dtype=torch.float16)
    check(f, x, fused={"swiglu": 1, "geglu_left": 1, "geglu_right": 1}, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = q @ k.transpose(-2, -1) * 0.25
        weights = weights + mask if masked else weights
        return F.softmax(weights, -1, dtype=torch.float32).to(q.dtype) @ v

    q, k, v = (torch.randn(2, 4, n, 16, dtype=torch.float16) for n in (1, 7, 7))
    mask = torch.zeros(2, 1, 1, 7, dtype=torch.float16).masked_fill(torch.rand(2, 1, 1, 7) > 0.6, -1e4)
    check(f, q, k, v, mask, fused={"attention": 1}, rtol=2e-2, atol=2e-2)


def test_routing() -> None:
    def f(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, whose = torch.topk(F.softmax(logits, -1), 2)
        return values, whose

    check(f, torch.randn(6, 8), fused={"moe_routing": 1})


def test_quantised_rows_and_their_product() -> None:
    def f(x: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)

    x = torch.randn(32, 64, dtype=torch.float16)
    g = torch.compile(f, backend="graphmode", options={"mode": "max-autotune"})
    weight, columns = torch.zeros(1).npu(), torch.zeros(1).npu()
    for _ in range(4):
        got, want = g(x.npu(), weight, columns), f(x.npu(), weight, columns)
        assert (got.int() - want.int()).abs().max() <= 1  # a half may go either way: the device divides in float32
    assert graphmode.report().fused == {"quantise_rows": 1}, graphmode.report().notes


def test_a_decoder_as_it_comes() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval().npu()
    ids = torch.randint(0, 50, (2, 7)).npu()
    g = torch.compile(lambda i: model(i, use_cache=False).logits, backend="graphmode", options={"mode": "max-autotune"})
    for _ in range(4):
        torch.testing.assert_close(g(ids), model(ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    assert graphmode.report().fused == {"rms_norm": 1, "add_rms_norm": 4, "rotary": 4, "attention": 2}
