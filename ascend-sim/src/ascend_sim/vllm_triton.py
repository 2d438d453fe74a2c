"""Stands in for triton-ascend: what vllm-ascend's and vLLM's Triton kernels mean, as plain torch code.

Where Triton is absent, vLLM's own placeholder for it makes of a kernel a function that can't be launched. Ours makes
a kernel of it again: a launch runs what is registered here under the kernel's name, or fails with that name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch

_meanings: dict[str, Callable[..., None]] = {}


def means(kernel: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as the meaning of the Triton kernel of that name; it gets the grid and the launch's own."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _meanings[kernel] = function
        return function

    return register


class Kernel:
    """What `@triton.jit` makes of a function: `kernel[grid](...)` launches it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        meaning = _meanings.get(self.__name__)
        if meaning is None:
            raise NotImplementedError(f"ascend-sim has no meaning for the Triton kernel {self.__name__}")
        return partial(meaning, grid)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"the Triton kernel {self.__name__} is launched as kernel[grid](...)")


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit`, with and without options."""
    return Kernel if function is None else Kernel(function)


def take_over(importing: ModuleType) -> None:
    """Has the placeholder of `vllm.triton_utils.importing` make kernels that can be launched."""
    placeholder = importing.TritonPlaceholder
    make = placeholder.__init__

    def made(self: Any) -> None:
        make(self)
        self.jit = jit

    placeholder.__init__ = made


@means("_compute_slot_mapping_kernel")
def slot_mapping(
    grid: tuple[int, ...],
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: torch.Tensor,
    positions: torch.Tensor,
    block_table: torch.Tensor,
    block_table_stride: int,
    block_size: int,
    slots: torch.Tensor,
    *,
    TOTAL_CP_WORLD_SIZE: int,
    TOTAL_CP_RANK: int,
    CP_KV_CACHE_INTERLEAVE_SIZE: int,
    PAD_ID: int,
    BLOCK_SIZE: int,
) -> None:
    """The slot of each token in the key-value cache; PAD_ID behind the last, and for tokens of other ranks."""
    ranks, run = TOTAL_CP_WORLD_SIZE, CP_KV_CACHE_INTERLEAVE_SIZE
    starts = query_start_loc[: grid[0]]  # one program for each request, and one for the padding
    token = torch.arange(num_tokens, device=starts.device, dtype=starts.dtype)
    request = torch.searchsorted(starts, token, right=True) - 1
    position = positions[:num_tokens]
    block = block_table[request.clamp(0, grid[0] - 2), position // (block_size * ranks)]
    offset = position % (block_size * ranks)
    slot = block * block_size + offset // (ranks * run) * run + offset % run
    slot = torch.where(offset // run % ranks == TOTAL_CP_RANK, slot, PAD_ID)
    of_a_request = (request >= 0) & (request < grid[0] - 1)
    slots[:num_tokens] = torch.where(of_a_request, slot.to(slots.dtype), slots[:num_tokens])
    slots[num_tokens:max_num_tokens] = PAD_ID
