"""Turns an OpInfo into cases: one program each, with as many sets of changed values as there are calls.

Owns which samples are taken and that values really change from call to call; it compares nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.testing._internal import common_methods_invocations
from torch.testing._internal.opinfo.core import OpInfo, SampleInput
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .compare import same_values
from .storage import clone_group, flat, parts, same_layout

DEVICE = torch.device(os.environ.get("GRAPHMODE_TEST_DEVICE", "cpu"))
"""Where the programs run. Samples are drawn on the CPU."""
WARM_CALLS = 2
"""The runner warms up at a signature's first call and captures at its second."""
REPLAY_CALLS = 2
CALLS = WARM_CALLS + REPLAY_CALLS
SAMPLES = 8

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int64": torch.int64}
# An operator without fp32 is swept in the first of these that it has.
_INSTEAD_OF_FP32 = (torch.int64, torch.complex64, torch.float16, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Case:
    """One program, and the input values of each of its calls.

    `leaves` are the flattened (input, args, kwargs); `slots[i]` says which tensor stands at leaf i, or None.
    """

    op: str
    dtype: str
    label: str
    fn: Callable[..., Any]
    leaves: list[Any]
    spec: TreeSpec
    slots: list[int | None]
    values: list[list[Tensor]]
    threads: int = 1

    @property
    def name(self) -> str:
        return f"{self.op}/{self.dtype}/{self.label}"

    def arguments(self, tensors: list[Tensor]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The (input, args, kwargs) of a call on these tensors."""
        pairs = zip(self.slots, self.leaves, strict=True)
        return tree_unflatten([leaf if slot is None else tensors[slot] for slot, leaf in pairs], self.spec)

    def call(self, tensors: list[Tensor]) -> Any:
        """Run the program on these tensors."""
        first, args, kwargs = self.arguments(tensors)
        return self.fn(first, *args, **kwargs)


def _without_seed(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


# op_db seeds inside the programs of its random operators, so that none would draw a new number; the check
# seeds before each call instead.
common_methods_invocations.wrapper_set_seed = _without_seed


def op_name(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def dtype_for(op: OpInfo, tag: str) -> torch.dtype | None:
    """The dtype in which `op` is swept under this tag, None when it has none on the CPU."""
    candidates = (DTYPES[tag], *(_INSTEAD_OF_FP32 if tag == "fp32" else ()))
    return next((d for d in candidates if op.supports_dtype(d, "cpu")), None)


def seed_everything(seed: int) -> None:
    # torch.manual_seed formats a stack for each absent accelerator, which takes longer than most cases.
    torch.default_generator.manual_seed(seed)
    if DEVICE.type != "cpu":
        torch.get_device_module(DEVICE).manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def synchronize() -> None:
    """Waits for the device, which raises what a task of it raised."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def waits_for_the_device(call: Callable[[], object]) -> bool:
    """Whether the call itself does, in eager, as where the host computes what the device can't: no capture may."""
    if DEVICE.type == "cpu" or find_spec("ascend_sim") is None:  # only the emulation counts
        return False
    import ascend_sim

    def waits() -> int:
        return sum(n for name, n in ascend_sim.calls().items() if "Synchronize" in name)

    before = waits()
    call()
    return waits() > before


def rng_state() -> Tensor:
    """Of the CPU's generator, and of the device's where that is another."""
    states = [torch.get_rng_state()]
    if DEVICE.type != "cpu":
        states.append(torch.get_device_module(DEVICE).get_rng_state())
    return torch.cat(states)


def cases(op: OpInfo, tag: str) -> Iterator[Case]:
    """Up to eight samples of the operator, one with strides of its own and one of its in-place form."""
    dtype = dtype_for(op, tag)
    if dtype is None:
        return
    draws = [_draw(op, dtype, n) for n in range(CALLS)]
    samples = list(zip(*draws, strict=True))
    for i, sample in enumerate(samples):
        yield build(op_name(op), tag, f"sample{i}", op.op, list(sample))
    if all(t.layout is torch.strided for t in _leaves(samples[0][0]) if isinstance(t, Tensor)):
        yield build(op_name(op), tag, "strided", op.op, [s.noncontiguous() for s in samples[0]])
    if op.inplace_variant is not None:
        for sample in [s for s in samples if not s[0].broadcasts_input][:1]:
            yield build(op_name(op), tag, "inplace", op.inplace_variant, list(sample))


def _leaves(sample: SampleInput) -> list[Any]:
    return tree_flatten((sample.input, sample.args, sample.kwargs))[0]


def _draw(op: OpInfo, dtype: torch.dtype, number: int) -> list[SampleInput]:
    # sample_inputs reseeds to 42 by default, so that every draw would hold the same values.
    seed_everything(1000)
    torch.default_generator.manual_seed(1000 + number)
    samples = list(op.sample_inputs("cpu", dtype, set_seed=False))
    if len(samples) <= SAMPLES:
        return samples
    return [samples[i * (len(samples) - 1) // (SAMPLES - 1)] for i in range(SAMPLES)]


def build(op: str, tag: str, label: str, fn: Callable[..., Any], draws: list[SampleInput], threads: int = 1) -> Case:
    """One case of draws that differ in values; where they do not, or not only, values are changed here."""
    first = draws[0]
    leaves, spec = tree_flatten((first.input, first.args, first.kwargs))
    tensors, slots = _gather(leaves)
    values = [_gather(_leaves(draw))[0] for draw in draws]
    case = Case(op, tag, label, fn, leaves, spec, slots, [tensors] * CALLS, threads)
    if not all(same_layout(tensors, v) for v in values) or all(same_values(tensors, v) for v in values[1:]):
        values = [tensors] + [_changed(case, tensors, step) for step in range(1, CALLS)]
    return _on_the_device(Case(op, tag, label, fn, leaves, spec, slots, values, threads))


def _on_the_device(case: Case) -> Case:
    if DEVICE.type == "cpu":
        return case
    leaves = [DEVICE if isinstance(x, (str, torch.device)) and str(x) == "cpu" else x for x in case.leaves]
    return replace(case, leaves=leaves, values=[clone_group(v, DEVICE) for v in case.values])


def _gather(leaves: list[Any]) -> tuple[list[Tensor], list[int | None]]:
    tensors: list[Tensor] = []
    index: dict[int, int] = {}
    slots: list[int | None] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            slots.append(None)
            continue
        if id(leaf) not in index:
            index[id(leaf)] = len(tensors)
            tensors.append(leaf.detach())
        slots.append(index[id(leaf)])
    return tensors, slots


def _changed(case: Case, tensors: list[Tensor], step: int) -> list[Tensor]:
    """The tensors with other values that the program still accepts; the same values where there are none."""
    for change in (_scale, _roll, _shift):
        group = clone_group(tensors)
        for row in _storage_rows(group):
            change(row, step)
        if same_values(group, tensors):
            continue
        try:
            case.call(clone_group(group))
        except Exception:  # whatever an operator raises on values outside its domain
            continue
        return group
    return tensors


def _storage_rows(tensors: list[Tensor]) -> Iterator[Tensor]:
    seen: set[int] = set()
    for t in tensors:
        row = parts(t)[-1]
        if row.numel() and row.untyped_storage()._cdata not in seen:
            seen.add(row.untyped_storage()._cdata)
            yield flat(row)


def _scale(row: Tensor, step: int) -> None:
    if row.dtype.is_floating_point or row.is_complex():
        row.mul_(0.5**step)


def _roll(row: Tensor, step: int) -> None:
    row.copy_(row.roll(step))


def _shift(row: Tensor, step: int) -> None:
    if row.dtype.is_floating_point or row.is_complex():
        row.add_(0.25 * step)
