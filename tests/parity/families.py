"""The families whose kernels split over threads, and one large program for each of their operators.

Owns the large samples and the list of operators for which "not captured, for a reason" is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.testing import make_tensor
from torch.testing._internal.opinfo.core import (
    BinaryUfuncInfo,
    OpInfo,
    ReductionOpInfo,
    SampleInput,
    UnaryUfuncInfo,
)

from .samples import CALLS, Case, build, dtype_for, op_name, seed_everything

ROWS, COLUMNS = 260, 257
THREADS = (1, 2)

Make = Callable[..., Tensor]
"""Makes a tensor of the case's dtype from sizes; keyword arguments as `make_tensor` has them."""


def must_replay(op: OpInfo, tag: str) -> bool:
    """Whether a counted reason will not do: elementwise and reduction kernels in fp32 can all be captured."""
    return tag == "fp32" and isinstance(op, (UnaryUfuncInfo, BinaryUfuncInfo, ReductionOpInfo))


def large_cases(op: OpInfo, tag: str) -> Iterator[Case]:
    """Programs over 66,820 elements, twice the size above which ATen splits, at one and at two threads."""
    dtype = dtype_for(op, tag)
    builder = _builder(op)
    if dtype is None or builder is None:
        return
    draws = []
    for number in range(CALLS):
        seed_everything(2000 + number)
        draws.append(builder(_maker(dtype)))
    for threads in THREADS:
        yield build(op_name(op), tag, f"large{threads}", op.op, draws, threads)


def _maker(dtype: torch.dtype) -> Make:
    def make(*sizes: int, **options: Any) -> Tensor:
        return make_tensor(sizes, device="cpu", dtype=dtype, **options)

    return make


def _builder(op: OpInfo) -> Callable[[Make], SampleInput] | None:
    if op_name(op) in _LARGE:
        return _LARGE[op_name(op)]
    if isinstance(op, UnaryUfuncInfo):
        return lambda make: _unary(op, make)
    if isinstance(op, BinaryUfuncInfo):
        return lambda make: _binary(op, make)
    if isinstance(op, ReductionOpInfo):
        return lambda make: SampleInput(make(ROWS, COLUMNS, low=-2, high=2), kwargs={"dim": 1})
    return None


def _unary(op: UnaryUfuncInfo, make: Make) -> SampleInput:
    low, high = op.domain
    x = make(ROWS, COLUMNS, low=low, high=high)
    return SampleInput(x, kwargs=op.sample_kwargs("cpu", x.dtype, x)[0])


def _binary(op: BinaryUfuncInfo, make: Make) -> SampleInput:
    left = make(ROWS, COLUMNS, **op.lhs_make_tensor_kwargs)
    right = make(ROWS, COLUMNS, **(op.rhs_make_tensor_kwargs or {"exclude_zero": True}))
    return SampleInput(left, args=(right,))


def _on(*args: Any, **kwargs: Any) -> Callable[[Make], SampleInput]:
    return lambda make: SampleInput(make(ROWS, COLUMNS), args=args, kwargs=kwargs)


def _with(*sizes: tuple[int, ...], **kwargs: Any) -> Callable[[Make], SampleInput]:
    def builder(make: Make) -> SampleInput:
        first, *rest = (make(*size) for size in sizes)
        return SampleInput(first, args=tuple(rest), kwargs=kwargs)

    return builder


def _probabilities(make: Make) -> SampleInput:
    return SampleInput(make(ROWS, COLUMNS, low=0, high=1), args=(make(ROWS, COLUMNS, low=0, high=1),))


def _where(make: Make) -> SampleInput:
    x, y = make(ROWS, COLUMNS), make(ROWS, COLUMNS)
    return SampleInput(x, args=(x > 0, y))


def _masked_fill(make: Make) -> SampleInput:
    x = make(ROWS, COLUMNS)
    return SampleInput(x, args=(x > 0, 2))


def _batch_norm(make: Make) -> SampleInput:
    means, variances = make(16, low=-1, high=1), make(16, low=0.5, high=2)
    return SampleInput(make(4, 16, 33, 33), args=(means, variances), kwargs={"training": True})


def _native_batch_norm(make: Make) -> SampleInput:
    means, variances = make(16, low=-1, high=1), make(16, low=0.5, high=2)
    return SampleInput(make(4, 16, 33, 33), args=(make(16), make(16), means, variances, True, 0.1, 1e-5))


def _batch_norm_with_update(make: Make) -> SampleInput:
    means, variances = make(16, low=-1, high=1), make(16, low=0.5, high=2)
    return SampleInput(make(4, 16, 33, 33), args=(make(16), make(16), means, variances, 0.1, 1e-5))


def _softmax_backward(make: Make) -> SampleInput:
    gradient, output = make(ROWS, COLUMNS), make(ROWS, COLUMNS, low=0, high=1)
    return SampleInput(gradient, args=(output, 1, gradient.dtype))


_SQUARE = (ROWS, COLUMNS)
_IMAGE = (4, 16, 33, 33)
_WIDTH = (COLUMNS,)

_LARGE: dict[str, Callable[[Make], SampleInput]] = {
    # elementwise
    "addcmul": _with(_SQUARE, _SQUARE, _SQUARE, value=2),
    "addcdiv": _with(_SQUARE, _SQUARE, _SQUARE, value=2),
    "clamp": _on(-1, 3),
    "clone": _on(),
    "fill": _on(2),
    "lerp": _with(_SQUARE, _SQUARE, _SQUARE),
    "logaddexp2": _with(_SQUARE, _SQUARE),
    "masked_fill": _masked_fill,
    "nn.functional.binary_cross_entropy": _probabilities,
    "nn.functional.binary_cross_entropy_with_logits": _probabilities,
    "nn.functional.dropout": _on(p=0.3, training=True),
    "nn.functional.gelu": _on(),
    "nn.functional.glu": lambda make: SampleInput(make(ROWS, 258), args=(-1,)),
    "nn.functional.hardswish": _on(),
    "nn.functional.leaky_relu": _on(),
    "nn.functional.l1_loss": _with(_SQUARE, _SQUARE),
    "nn.functional.mse_loss": _with(_SQUARE, _SQUARE),
    "nn.functional.huber_loss": _with(_SQUARE, _SQUARE),
    "nn.functional.smooth_l1_loss": _with(_SQUARE, _SQUARE),
    "to": _on("cpu", torch.float64),
    "tril": _on(),
    "triu": _on(),
    "where": _where,
    # reductions and scans
    "aminmax": _on(dim=1),
    "cummax": _on(1),
    "cummin": _on(1),
    "cumprod": _on(1),
    "cumsum": _on(1),
    "dist": _with(_SQUARE, _SQUARE),
    "dot": _with((66_820,), (66_820,)),
    "linalg.norm": _on(),
    "linalg.vector_norm": _on(dim=(0, 1)),
    "logcumsumexp": _on(1),
    "logsumexp": _on(1),
    "max.reduction_no_dim": _on(),
    "max.reduction_with_dim": _on(1),
    "mean": _on(dim=(0, 1)),
    "median": _on(1),
    "min.reduction_no_dim": _on(),
    "min.reduction_with_dim": _on(1),
    "norm": _on(),
    "prod": lambda make: SampleInput(make(ROWS, COLUMNS, low=1, high=2), kwargs={"dim": 1}),
    "std_mean": _on(1),
    "sum": _on(dim=(0, 1)),
    "var_mean": _on(1),
    # normalisation
    "_batch_norm_with_update": _batch_norm_with_update,
    "_softmax_backward_data": _softmax_backward,
    "log_softmax": _on(1),
    "masked.log_softmax": _on(1),
    "masked.softmax": _on(1),
    "native_batch_norm": _native_batch_norm,
    "native_group_norm": lambda make: SampleInput(make(*_IMAGE), args=(make(16), make(16), 4, 16, 33 * 33, 4, 1e-5)),
    "native_layer_norm": lambda make: SampleInput(
        make(ROWS, COLUMNS), args=([COLUMNS], make(*_WIDTH), make(*_WIDTH), 1e-5)
    ),
    "nn.functional.batch_norm": _batch_norm,
    "nn.functional.group_norm": lambda make: SampleInput(make(*_IMAGE), args=(4, make(16), make(16))),
    "nn.functional.instance_norm": lambda make: SampleInput(make(*_IMAGE)),
    "nn.functional.layer_norm": lambda make: SampleInput(
        make(ROWS, COLUMNS), args=([COLUMNS], make(*_WIDTH), make(*_WIDTH))
    ),
    "nn.functional.local_response_norm": lambda make: SampleInput(make(*_IMAGE), args=(5,)),
    "nn.functional.normalize": _on(),
    "nn.functional.rms_norm": lambda make: SampleInput(make(ROWS, COLUMNS), args=([COLUMNS], make(*_WIDTH))),
    "renorm": _on(2, 1, 3.0),
    "softmax": _on(1),
    "torch.ops.aten._safe_softmax.default": _on(1),
}
