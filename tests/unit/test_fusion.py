"""Fusions: what is found in programs as models write them, and what is left alone. On the CPU, by a table of the tests'
own, whose calls are written plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn

import graphmode
from graphmode.devices import adapter
from graphmode.devices.cpu import CpuDevice
from graphmode.fusion import aten as aten_fusions
from graphmode.fusion.emit import Emit
from graphmode.fusion.patterns import RULES

aten = torch.ops.aten
lib = torch.library.Library("fusion_test", "FRAGMENT")


def _plain(name: str, schema: str, f: Callable[..., Any]) -> Any:
    lib.define(f"{name}{schema}")
    lib.impl(name, f, "CompositeExplicitAutograd")
    return getattr(torch.ops.fusion_test, name).default


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()).to(x.dtype)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.double().chunk(2, -1)
    return (x.double() * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)


def _gated(act: Callable[[Tensor], Tensor], left: bool) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        a, b = x.double().chunk(2, -1)
        return (act(a) * b if left else a * act(b)).to(x.dtype)

    return f


def _routing(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, whose = x.double().softmax(-1).topk(k)
    return values.to(x.dtype), whose


NORM = _plain("norm", "(Tensor x, Tensor weight, float eps) -> Tensor", _norm)
ROTARY = _plain("rotary", "(Tensor x, Tensor cos, Tensor sin) -> Tensor", _rotary)
SWIGLU = _plain("swiglu", "(Tensor x) -> Tensor", _gated(F.silu, True))
GEGLU_LEFT = _plain("geglu_left", "(Tensor x) -> Tensor", _gated(F.gelu, True))
GEGLU_RIGHT = _plain("geglu_right", "(Tensor x) -> Tensor", _gated(F.gelu, False))
ROUTING = _plain("routing", "(Tensor x, int k) -> (Tensor, Tensor)", _routing)


def _one(op: Any, *names: str) -> Any:
    def provider(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
        return [emit(op, *(bound[n] for n in names))]

    return provider


def _add_norm(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    added = emit(aten.add.Tensor, bound["a"], bound["b"])
    return [emit(NORM, added, bound["weight"], bound["eps"]), added]


def _route(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    made = emit(ROUTING, bound["logits"], bound["k"])
    return [emit.item(made, 0), emit.item(made, 1)]


def _quantise(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    top = emit(aten.amax.default, emit(aten.abs.default, bound["x"]), [-1], True)
    scale = emit(aten.mul.Tensor, top, 1 / 127)
    return [emit(aten.to.dtype, emit(aten.round.default, emit(aten.div.Tensor, bound["x"], scale)), torch.int8), scale]


def _quant_matmul(emit: Emit, bound: Mapping[str, Any]) -> Sequence[fx.Node]:
    product = emit(aten.to.dtype, emit(aten._int_mm.default, bound["x"], bound["weight"]), torch.float32)
    return [emit(aten.mul.Tensor, emit(aten.mul.Tensor, product, bound["column_scale"]), bound["row_scale"])]


TABLE = {
    **aten_fusions.TABLE,
    "rms_norm": _one(NORM, "x", "weight", "eps"),
    "add_rms_norm": _add_norm,
    "rotary": _one(ROTARY, "x", "cos", "sin"),
    "swiglu": _one(SWIGLU, "x"),
    "geglu_left": _one(GEGLU_LEFT, "x"),
    "geglu_right": _one(GEGLU_RIGHT, "x"),
    "moe_routing": _route,
    "quantise_rows": _quantise,
    "quant_matmul": _quant_matmul,
}


class FusingDevice(CpuDevice):
    """The CPU, with the table."""

    name = "fusing"

    def fusions(self) -> Any:
        return TABLE


@pytest.fixture(autouse=True)
def fusing() -> Iterator[None]:
    adapter._found["fusing"] = FusingDevice()
    with torch.no_grad():
        yield
    del adapter._found["fusing"]


def check(f: Callable[..., Any], *inputs: Any, fused: Mapping[str, int], **options: Any) -> None:
    """The same values as eager's, in live calls and in replays, by these fusions and no others."""
    given = {"device": "fusing", "mode": "max-autotune", **options}
    g = torch.compile(f, backend="graphmode", options=given)
    for _ in range(4):
        want = f(*(i.clone() for i in inputs))
        torch.testing.assert_close(g(*(i.clone() for i in inputs)), want)
    report = graphmode.report()
    assert report.fused == fused, (report.fused, report.notes)
    assert report.replays > 0, report.fallbacks


def llama_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def t5_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * x


def gemma_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return ((wide / torch.sqrt(1e-6 + (wide * wide).mean(dim=-1, keepdim=True))) * weight.float()).type_as(x)


@pytest.mark.parametrize(
    ("norm", "dtype"),
    [
        *((norm, torch.float32) for norm in (llama_norm, t5_norm, gemma_norm)),
        *((norm, torch.bfloat16) for norm in (llama_norm, gemma_norm)),
    ],
)
def test_root_mean_square_norms(norm: Callable[..., Tensor], dtype: torch.dtype) -> None:
    check(norm, torch.randn(2, 3, 16, dtype=dtype), torch.randn(16, dtype=dtype), fused={"rms_norm": 1})


def test_the_function_of_torch_is_the_same_norm() -> None:
    f = lambda x, w: F.rms_norm(x, (16,), w, 1e-6)  # noqa: E731
    check(f, torch.randn(5, 16), torch.randn(16), fused={"rms_norm": 1})


def test_a_residual_goes_with_its_norm() -> None:
    def f(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return llama_norm(x, weight) * 2, x

    check(f, torch.randn(3, 16), torch.randn(3, 16), torch.randn(16), fused={"add_rms_norm": 1})


def test_a_residual_that_is_written_between_is_left() -> None:
    def f(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        x.mul_(3)
        return llama_norm(x, weight), x

    check(f, torch.randn(3, 16), torch.randn(3, 16), torch.randn(16), fused={"rms_norm": 1})


def test_an_input_that_is_written_between_the_calls_is_left() -> None:
    def f(x: Tensor, weight: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        x.add_(1)
        return weight * (x * torch.rsqrt(variance + 1e-6))

    check(f, torch.randn(3, 16), torch.randn(16), fused={})


def test_two_inputs_may_be_one_memory() -> None:
    def f(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        y.add_(1)
        return weight * (x * torch.rsqrt(variance + 1e-6))

    x, weight = torch.randn(3, 16), torch.randn(16)
    g = torch.compile(f, backend="graphmode", options={"device": "fusing", "mode": "max-autotune"})
    for _ in range(4):
        mine, theirs = x.clone(), x.clone()
        torch.testing.assert_close(g(mine, mine, weight), f(theirs, theirs, weight))
        torch.testing.assert_close(g(x.clone(), theirs, weight), f(x.clone(), theirs, weight))
    assert not graphmode.report().fused


def test_a_value_inside_that_is_used_outside_is_left() -> None:
    def f(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight * normed, normed

    check(f, torch.randn(3, 16), torch.randn(16), fused={})
    assert any("used elsewhere" in note for note in graphmode.report().notes)


def test_other_sums_are_no_norm() -> None:
    def f(x: Tensor, weight: Tensor) -> Tensor:
        a = weight * (x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6))  # of another dimension
        b = weight * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6))  # of another power
        c = weight * (x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6))  # no mean
        d = weight * (a * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))  # of another tensor
        e = weight * (x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 1e-6, alpha=2)))
        return a + b + c + d + e

    check(f, torch.rand(16, 16) + 0.5, torch.randn(16), fused={})


@pytest.mark.parametrize("fuel", [0, 1, 2, 3])
def test_fuel_says_how_many(fuel: int) -> None:
    def f(x: Tensor, weight: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.sin(llama_norm(x, weight))
        return x

    wanted = {"rms_norm": fuel} if fuel else {}
    check(f, torch.randn(3, 16), torch.randn(16), fused=wanted, fuel=fuel)


def test_eager_s_kernels_stay_where_they_are_asked_for() -> None:
    check(llama_norm, torch.randn(3, 16), torch.randn(16), fused={}, mode="reduce-overhead")


def rotate_half(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def test_rotary_embedding() -> None:
    def f(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    check(f, q, k, torch.randn(2, 5, 8), torch.randn(2, 5, 8), fused={"rotary": 2})


def test_halves_that_are_swapped_are_no_rotary_embedding() -> None:
    def f(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return (x * cos + torch.cat((right, -left), -1) * sin) + (x * cos + torch.cat((-left, right), -1) * sin)

    check(f, torch.randn(2, 4, 5, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8), fused={})


@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (lambda x: F.silu(x[..., :8]) * x[..., 8:], "swiglu"),
        (lambda x: (lambda a, b: b * F.silu(a))(*x.chunk(2, -1)), "swiglu"),
        (lambda x: F.gelu(x[..., :8]) * x[..., 8:], "geglu_left"),
        (lambda x: (lambda a, b: a * F.gelu(b))(*x.split(8, -1)), "geglu_right"),
    ],
)
def test_gated_activations(f: Callable[..., Tensor], kind: str) -> None:
    check(f, torch.randn(3, 16), fused={kind: 1})


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.silu(x[..., :7]) * x[..., 7:14],  # not all of it
        lambda x: F.silu(x[..., 1:9]) * x[..., 8:],
        lambda x: F.silu(x[..., 8:]) * x[..., :8],  # the other way round
        lambda x: F.silu(x[:8]) * x[8:],
    ],
)
def test_other_parts_are_no_gate(f: Callable[..., Tensor]) -> None:
    check(f, torch.randn(16, 16), fused={})


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out(masked: bool) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        weights = torch.matmul(q, k.transpose(2, 3)) * 0.3
        if masked:
            weights = weights + mask
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        weights = F.dropout(weights, p=0.1, training=False)
        return torch.matmul(weights, v).transpose(1, 2).contiguous()

    q, k, v = (torch.randn(2, 4, n, 8) for n in (3, 5, 5))
    mask = torch.zeros(2, 1, 3, 5).masked_fill(torch.rand(2, 1, 3, 5) > 0.7, -1e9)
    check(f, q, k, v, mask, fused={"attention": 1})


def test_attention_that_draws_numbers_is_left() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.dropout(torch.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.3, -1), 0.5, True)
        return torch.matmul(weights, v)

    g = torch.compile(f, backend="graphmode", options={"device": "fusing", "mode": "max-autotune"})
    for _ in range(4):
        g(*(torch.randn(2, 4, 5, 8) for _ in range(3)))
    assert not graphmode.report().fused


def test_routing_to_experts() -> None:
    def f(logits: Tensor) -> tuple[Tensor, Tensor]:
        values, whose = torch.topk(F.softmax(logits, dim=-1, dtype=torch.float32), 2)
        return values / values.sum(-1, keepdim=True), whose

    check(f, torch.randn(6, 8), fused={"moe_routing": 1})


def test_quantisation_of_rows_and_the_product() -> None:
    def f(x: Tensor, weight: Tensor, column_scale: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        quantised = torch.clamp(torch.round(x / scale), -128, 127).to(torch.int8)
        return torch._int_mm(quantised, weight).to(x.dtype) * scale * column_scale

    x, weight = torch.randn(32, 64), torch.randint(-128, 127, (64, 16), dtype=torch.int8)
    check(f, x, weight, torch.rand(16), fused={"quantise_rows": 1, "quant_matmul": 1})


def test_a_bias_goes_with_its_product() -> None:
    check(lambda x, w, b: x @ w + b, torch.randn(4, 8), torch.randn(8, 6), torch.randn(6), fused={"matmul_bias": 1})


def test_sizes_that_change_stay_symbols() -> None:
    g = torch.compile(llama_norm, backend="graphmode", options={"device": "fusing", "mode": "max-autotune"})
    weight = torch.randn(16)
    for rows in (2, 3, 2, 3, 7, 1, 5):
        x = torch.randn(rows, 16)
        torch.testing.assert_close(g(x, weight), llama_norm(x, weight))
    assert set(graphmode.report().fused) == {"rms_norm"}, graphmode.report()


def test_a_decoder_of_transformers_is_fused_as_it_comes() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    f = lambda ids: model(ids, use_cache=False).logits  # noqa: E731
    check(f, torch.randint(0, 50, (1, 7)), fused={"add_rms_norm": 4, "rms_norm": 1, "rotary": 4, "attention": 2})


def test_every_rule_is_asked_for_here() -> None:
    assert {rule.name for rule in RULES} == set(TABLE)


def test_a_module_s_training_is_not_touched() -> None:
    layer = nn.RMSNorm(16)
    g = torch.compile(layer, backend="graphmode", options={"device": "fusing", "mode": "max-autotune"})
    x = torch.randn(3, 16)
    with torch.enable_grad():
        for _ in range(3):
            layer.zero_grad()
            g(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w: w * torch.ops.aten._to_copy(norm_of(x), dtype=torch.int8).to(x.dtype),  # truncated
        lambda x, w: w * norm_of(x.to(torch.int8).float()),
        lambda x, w: w * norm_of(x).to(torch.float8_e4m3fn).to(x.dtype),
    ],
)
def test_what_loses_more_than_a_rounding_is_left(f: Callable[..., Tensor]) -> None:
    g = torch.compile(f, backend="graphmode", options={"device": "fusing", "mode": "max-autotune"})
    weight = torch.randn(16)
    for _ in range(4):
        x = torch.randn(3, 16) * 3
        torch.testing.assert_close(g(x, weight), f(x, weight))


def norm_of(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def test_a_gate_that_is_truncated_is_left() -> None:
    def f(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate).to(torch.int8).to(x.dtype) * up

    check(f, torch.randn(3, 16) * 3, fused={})


def test_autocast_inside_is_left() -> None:
    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ w + b

    check(f, torch.randn(4, 8), torch.randn(8, 6), torch.randn(6), fused={})


def test_a_region_of_autocast_elsewhere_is_no_hindrance() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = torch.sin(x)
        return llama_norm(x, w)

    check(f, torch.randn(4, 16), torch.randn(16), fused={"rms_norm": 1})


def test_a_bias_of_another_dtype_is_left() -> None:
    f = lambda x, w, b: x @ w + b  # noqa: E731
    check(f, torch.randn(4, 8), torch.randn(8, 6), torch.arange(6), fused={})


def test_a_mask_that_makes_scores_larger_is_left() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) * 0.5 + mask, -1) @ v

    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    check(f, q, k, v, torch.randn(3, 1, 4, 4), fused={})


def test_scores_divided_by_zero_are_left() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) / 0.0, -1).nan_to_num() @ v

    check(f, *(torch.randn(1, 2, 4, 8) for _ in range(3)), fused={})


def test_a_tensor_whose_size_changes_keeps_its_views() -> None:
    def f(x: Tensor) -> Tensor:
        x = x + 0
        view = x.detach()
        same = x.to(torch.float32)
        same.unsqueeze_(0)
        return view * 1

    check(f, torch.randn(3), fused={}, mode="reduce-overhead")


def test_a_residual_that_is_used_under_autocast_is_left() -> None:
    """The fused call would have to stand there, and would give another dtype."""

    def f(a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = a + b
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ x.mT
        return y, llama_norm(x, w)

    check(f, torch.randn(4, 16), torch.randn(4, 16), torch.randn(16), fused={"rms_norm": 1})
