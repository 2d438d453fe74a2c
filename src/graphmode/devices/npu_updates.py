"""Calls of torch_npu that a captured graph can be given other lengths for: attention's, which are Python integers.

The calls and their arguments are those that torch_npu updates itself (torch_npu/npu/_npugraph_handlers), where these
are integers; its other ones take lengths as tensors. Run over the emulated runtime; never on an NPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from graphmode.program.updates import Lists

TABLE: Mapping[str, tuple[str, ...]] = {  # by the op's name, its lists of lengths: the queries', then the keys'
    "npu::npu_fused_infer_attention_score": ("actual_seq_lengths", "actual_seq_lengths_kv"),
    "npu::npu_fused_infer_attention_score_v2": ("actual_seq_qlen", "actual_seq_kvlen"),
}


@dataclass(frozen=True)
class _Group:
    """The tasks of one call, as the graph knows them, and the call, which keeps no memory."""

    handle: Any
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class TaskGroups:
    """The calls of one graph whose tasks can be updated, in their order."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._device = torch.device("npu")
        self._npu: Any = torch.get_device_module("npu")

    def capture(self, op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Captures a call as a group of tasks; returns its results.

        Memory for the largest lengths, and the results, are taken beforehand: the same call has to find them later.
        """
        shaped_args, shaped_kwargs = pytree.tree_map_only(torch.Tensor, _shape, (tuple(args), dict(kwargs)))
        shaped = op(*shaped_args, **shaped_kwargs)
        self._device = next(t.device for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        results = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=self._device) for t in shaped]
        packet = op._overloadpacket
        largest = getattr(torch.ops.npu, f"_{packet.__name__}_get_max_workspace")(*args, **kwargs)
        given = {**kwargs, "workspace": largest, "out": results}
        stream = self._npu.current_stream()
        self._npu.graph_task_group_begin(stream)
        packet.out(*args, **given)
        handle = self._npu.graph_task_group_end(stream)
        places = pytree.tree_map_only(torch.Tensor, _place, (tuple(args), given))
        self._groups.append(_Group(handle, packet.out, *places))
        return tuple(results)

    def update(self, lists: Sequence[Lists]) -> None:
        """Gives the calls other lengths, on the current stream: after what it has, and before what it is given next."""
        with self._npu.device(self._device), torch._C._AutoDispatchBelowAutograd():
            stream = self._npu.current_stream()
            for group, lengths in zip(self._groups, lists, strict=True):
                self._npu.graph_task_update_begin(stream, group.handle)
                try:
                    group.op(*group.args, **{**group.kwargs, **lengths})
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # the call's own error says more
                        self._npu.graph_task_update_end(stream)
                    raise
                self._npu.graph_task_update_end(stream)


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _place(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, without holding it: a graph's lies in the pool, where the next graph may have it as well."""
    import torch_npu

    place: torch.Tensor = torch_npu._C._weak_ref_tensor(tensor)
    return place
