"""What selects a graph: sizes, strides, dtypes, aliasing, modes and Python values of the arguments."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch
from torch._library.opaque_object import is_opaque_type, is_opaque_value_type

from graphmode import _C
from graphmode.devices.adapter import Device

_64_BITS = range(-(2**63), 2**63)


def signature_of(
    args: Sequence[Any], handed_on: Collection[int] = (), *, told: Collection[int] = (), placed: bool = False
) -> Hashable:
    """A key that is equal for calls one graph can serve. The native runner checks the same, and overlap besides.

    Args:
        args: of one call.
        handed_on: positions of tensors whose sizes and place matter to no recorded call.
        told: positions of integers that select no graph, since a replay is told them.
        placed: where a tensor lies in its storage matters, and how large that is.
    """
    parts: list[Hashable] = [_C.mode_bits()]
    storages: dict[int, tuple[int, Any]] = {}
    for i, arg in enumerate(args):
        if i in handed_on:
            parts.append((type(arg), arg.dtype, arg.requires_grad, arg.is_inference()))
        elif isinstance(arg, torch.Tensor):
            begin = arg.storage_offset() * arg.element_size()  # bytes: inputs of one storage may differ in dtype
            alias = storages.setdefault(arg.untyped_storage()._cdata, (i, begin))
            parts.append(
                (
                    type(arg),
                    arg.dtype,
                    tuple(arg.shape),
                    arg.stride(),
                    arg.requires_grad,
                    arg.is_inference(),
                    arg.is_conj(),
                    arg.is_neg(),
                    alias[0] if alias[0] == i else (alias[0], begin - alias[1]),
                    (begin, arg.untyped_storage().nbytes()) if placed else None,
                )
            )
        elif type(arg) is float:
            parts.append((float, arg.hex()))  # 0.0 is not -0.0
        elif i in told and type(arg) is int and arg in _64_BITS:
            parts.append(int)
        elif type(arg) is int or is_opaque_value_type(type(arg)):
            parts.append((type(arg), arg))
        else:
            parts.append((type(arg), id(arg)))  # an opaque reference; a graph for it keeps it alive
    return tuple(parts)


def not_capturable(device: Device, args: Sequence[Any], handed_on: Collection[int] = ()) -> str | None:
    """Why no graph of a device can take these arguments; None when one can. `handed_on`: as for `signature_of`."""
    first = next((a for a in args if isinstance(a, torch.Tensor)), None)
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            if first is not None and arg.device != first.device and arg.device.type == first.device.type:
                return f"input {i} is on {arg.device} and another on {first.device}: a graph is of one device"
            if not device.takes(arg):
                layout = str(arg.layout).removeprefix("torch.")
                found = f"{type(arg).__name__}, {layout}, {arg.device}"
                return f"input {i} is no plain strided {device.name.upper()} tensor ({found})"
        elif type(arg) is float and not device.capabilities.rebind_inputs:
            continue  # the value selects a graph, as it is part of the device's kernels
        elif type(arg) is not int and not is_opaque_type(type(arg)):
            return f"input {i} is a {type(arg).__name__}, which no signature can hold"
    return _hidden_overlap([None if i in handed_on else a for i, a in enumerate(args)])


def _hidden_overlap(args: Sequence[Any]) -> str | None:
    """Two storages over one memory, as of NumPy arrays: a graph knows its buffers apart by storage."""
    spans: dict[int, tuple[int, int, int]] = {}
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            storage = arg.untyped_storage()
            if storage.nbytes():
                spans.setdefault(storage._cdata, (storage.data_ptr(), storage.nbytes(), i))
    end, before = 0, -1
    for first, size, i in sorted(spans.values()):
        if first < end:
            return f"inputs {min(i, before)} and {max(i, before)} share memory that no storage object shows"
        if first + size > end:
            end, before = first + size, i
    return None
