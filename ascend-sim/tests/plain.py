"""Compares an op on the device with its plain definition on the host: eagerly, as one task, and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import ascend_sim
import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def tasks() -> int:
    """Kernels that were launched so far."""
    torch.npu.synchronize()
    return ascend_sim.calls().get("aclrtLaunchKernel", 0)


def to(device: str, value: Any) -> Any:
    """The same value there, with its strides; lists of tensors too."""
    if isinstance(value, Tensor):
        if value.device.type == device:
            return value.clone()
        with warnings.catch_warnings():  # torch_npu's first of this kind says what format it has
            warnings.simplefilter("ignore")
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            return made.copy_(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [to(device, item) for item in value]
    return value


def same(found: Any, wanted: Any, tolerance: float | None = None) -> None:
    """Asserts that two results are: tensors with their dtypes, shapes and, within rounding, values."""
    if isinstance(wanted, Tensor):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape, (found.dtype, found.shape, wanted.shape)
        within = TOLERANCE.get(wanted.dtype, 0) if tolerance is None else tolerance
        torch.testing.assert_close(found.cpu().double(), wanted.cpu().double(), rtol=within, atol=within)
    elif isinstance(wanted, Sequence) and not isinstance(wanted, str):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other, tolerance)
    elif isinstance(wanted, int):
        assert found == wanted


def others(value: Any) -> Any:
    """Other values of the same kind: of floating tensors, the rest stays."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return (value.double() * -0.5 + 0.25).to(value.dtype)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [others(item) for item in value]
    return value


def check(
    op: Callable[..., Any],
    plain: Callable[..., Any],
    *args: Any,
    host: tuple[str, ...] = (),
    meta: bool = True,
    tolerance: float | None = None,
    **kwargs: Any,
) -> Any:
    """Asserts that `op` gives what `plain` gives for the same tensors on the host, in what both return and write into.

    Args:
        host: keyword arguments whose tensors stay on the host
        meta: whether torch_npu has a meta kernel, which has to agree on shapes and dtypes
        tolerance: relative and absolute, instead of the dtype's
    """

    def there(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value if name in host else to("npu", value) for name, value in values.items()}

    def compare(found: Any, on_npu: list[Any], named: dict[str, Any], given: list[Any], others: dict[str, Any]) -> None:
        on_host, named_host = [to("cpu", a) for a in given], {n: to("cpu", a) for n, a in others.items()}
        wanted = plain(*on_host, **named_host)
        same(found, wanted, tolerance)
        same(on_npu, on_host, tolerance)
        same(list(named.values()), list(named_host.values()), tolerance)

    on_npu, named = [to("npu", a) for a in args], there(kwargs)
    before = tasks()
    found = op(*on_npu, **named)
    assert tasks() - before == 1
    compare(found, on_npu, named, list(args), kwargs)
    if meta:
        said = op(*[to("meta", a) for a in args], **{n: to("meta", a) for n, a in kwargs.items()})
        for one, other in zip(*([x] if isinstance(x, Tensor) else x or [] for x in (found, said)), strict=True):
            if isinstance(one, Tensor):
                assert one.shape == other.shape and one.dtype == other.dtype

    on_npu, named = [to("npu", a) for a in args], there(kwargs)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        replayed = op(*on_npu, **named)
    new, new_named = [others(a) for a in args], {n: a if n in host else others(a) for n, a in kwargs.items()}
    with torch.no_grad():
        for old, value in [*zip(on_npu, new, strict=True), *((named[n], a) for n, a in new_named.items())]:
            if isinstance(old, Tensor) and old.device.type == "npu":
                old.copy_(value)
            elif isinstance(old, list) and old and isinstance(old[0], Tensor):
                for item, one in zip(old, value, strict=True):
                    item.copy_(one)
    before = tasks()
    graph.replay()
    assert tasks() == before  # a graph is launched, not its kernels
    compare(replayed, on_npu, named, new, new_named)
    return found
