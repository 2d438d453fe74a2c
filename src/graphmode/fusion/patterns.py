"""What is looked for, largest first. Each rule names what a device's table is asked for, and the values it is given.

Written once for all devices; nothing here knows a model. Forms: those of transformers, vLLM, torchtitan and
torch.nn.functional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from graphmode.fusion.pattern import As, Call, Cast, Either, Exactly, Half, Many, Number, Optional, Pattern, Tensor

aten = torch.ops.aten

_ADD, _MUL = (aten.add.Tensor,), (aten.mul.Tensor,)
_LAST = Exactly(([-1], -1))
_TRUE = Exactly((True,))


@dataclass(frozen=True)
class Rule:
    """One group of calls. `also` names values besides the last call's that others may use and the device gives too."""

    name: str
    pattern: Pattern
    also: tuple[str, ...] = ()


def _call(targets: Any, *arguments: Pattern, commutes: bool = False) -> Call:
    return Call(targets if isinstance(targets, tuple) else (targets,), arguments, commutes)


def _either(*patterns: Pattern) -> Pattern:
    return Either(patterns)


# --- norms

# Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467: x / sqrt(mean(x^2) + eps) * weight


def _normalised(x: Pattern) -> Pattern:
    x = Cast(x)
    square = _either(
        _call((aten.pow.Tensor_Scalar,), x, Exactly((2,))), _call(aten.square.default, x), _call(_MUL, x, x)
    )
    variance = _call(_ADD, _call((aten.mean.dim,), square, _LAST, _TRUE), Number("eps"), commutes=True)
    return _either(
        _call(_MUL, x, _call(aten.rsqrt.default, variance), commutes=True),
        _call((aten.div.Tensor,), x, _call(aten.sqrt.default, variance)),
    )


def _rms_norm(x: Pattern) -> Pattern:
    weight = Tensor("weight")
    return _either(
        _call(aten.rms_norm.default, x, _NORMED, weight, Number("eps")),
        Cast(_call(_MUL, Cast(_normalised(x)), Cast(weight), commutes=True)),
    )


@dataclass(frozen=True)
class _OneDimension:
    """A list of one number, as layer norms take for the last dimension."""

    def match(self, value: Any, found: Any) -> Any:
        if isinstance(value, (list, tuple)) and len(value) == 1:
            yield found


_NORMED = _OneDimension()
_SUM = As("sum", _call(_ADD, Tensor("a"), Tensor("b")))

# --- rotary embedding: Su et al., 2021, https://arxiv.org/abs/2104.09864, with halves rotated as GPT-NeoX does


def _rotated(x: Pattern) -> Pattern:
    halves = Many((_call(aten.neg.default, Half(x, 1)), Half(x, 0)))
    return _call(aten.cat.default, halves, Exactly((-1, 3)))


_X = Tensor("x")
_ROTARY = Cast(
    _call(
        _ADD,
        _call(_MUL, Cast(_X), Tensor("cos"), commutes=True),
        _call(_MUL, _rotated(Cast(_X)), Tensor("sin"), commutes=True),
        commutes=True,
    )
)

# --- gated activations: Shazeer, 2020, https://arxiv.org/abs/2002.05202

_SWIGLU = _call(_MUL, Cast(_call(aten.silu.default, Cast(Half(_X, 0)))), Half(_X, 1), commutes=True)


def _geglu(gated: int) -> Pattern:
    gelu = _call(aten.gelu.default, Half(_X, gated), Exactly(("tanh", "none")))
    return _call(_MUL, As("gelu", gelu), Half(_X, 1 - gated), commutes=True)


# --- attention: softmax(q k^T scale + mask) v

_KEY = Tensor("key")  # of four dimensions: the providers look
_K_T = _either(
    _call(aten.transpose.int, _KEY, Exactly((-2, 2)), Exactly((-1, 3))),
    _call(aten.transpose.int, _KEY, Exactly((-1, 3)), Exactly((-2, 2))),
)
_SCORES = _call(aten.matmul.default, Tensor("query"), _K_T)
_SCALED = _either(
    _call(_MUL, _SCORES, Number("scale"), commutes=True), _call((aten.div.Tensor,), _SCORES, Number("divisor"))
)


def _masked(scores: Pattern) -> Pattern:
    return _call(_ADD, scores, Tensor("mask"), commutes=True)


@dataclass(frozen=True)
class _Dtype:
    """Whatever dtype is asked for."""

    def match(self, value: Any, found: Any) -> Any:
        if value is None or isinstance(value, torch.dtype):
            yield found


def _softmax(scores: Pattern) -> Pattern:
    return _call(aten.softmax.int, Cast(scores), Exactly((-1, 3)), _Dtype())


def _no_dropout(x: Pattern) -> Pattern:
    return _call(aten.dropout.default, x, Number("p"), Exactly((False,)))


_WEIGHTS = Optional(_no_dropout, Cast(_softmax(Optional(_masked, _SCALED))))
_ATTENTION = _call(aten.matmul.default, _WEIGHTS, Tensor("value"))

# --- mixture of experts

_ROUTING = _call(aten.topk.default, _softmax(Tensor("logits")), Number("k"))

# --- quantisation of each row: int8 by its largest value

_ROW_MAX = _call(aten.amax.default, _call(aten.abs.default, _X), _LAST, _TRUE)
_ROW_SCALE = As("scale", _call((aten.div.Tensor,), _ROW_MAX, Exactly((127, 127.0))))
_QUANTISED = _call(
    (aten.to.dtype, aten._to_copy.default),
    _call(
        (aten.clamp.default,),
        _call(aten.round.default, _call((aten.div.Tensor,), _X, _ROW_SCALE)),
        Exactly((-128, -127)),
        Exactly((127,)),
    ),
    Exactly((torch.int8,)),
)
_INT_PRODUCT = _call(
    (aten.to.dtype, aten._to_copy.default), _call(aten._int_mm.default, Tensor("x"), Tensor("weight")), _Dtype()
)
_QUANT_MATMUL = As(
    "product",
    Cast(
        _call(
            _MUL,
            _call(_MUL, _INT_PRODUCT, Tensor("row_scale"), commutes=True),
            Tensor("column_scale"),
            commutes=True,
        )
    ),
)

# --- products

_MATMUL_BIAS = _call(_ADD, _call((aten.mm.default, aten.matmul.default), _X, Tensor("weight")), Tensor("bias"))


RULES: tuple[Rule, ...] = (
    Rule("add_rms_norm", _rms_norm(_SUM), also=("sum",)),
    Rule("rms_norm", _rms_norm(_X)),
    Rule("rotary", _ROTARY),
    Rule("attention", _ATTENTION),
    Rule("swiglu", _SWIGLU),
    Rule("geglu_left", _geglu(0)),
    Rule("geglu_right", _geglu(1)),
    Rule("moe_routing", _ROUTING),
    Rule("quantise_rows", _QUANTISED, also=("scale",)),
    Rule("quant_matmul", _QUANT_MATMUL),
    Rule("matmul_bias", _MATMUL_BIAS),
)
