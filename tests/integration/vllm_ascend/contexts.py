"""What vLLM has around a call of the model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, ForwardContext


@functools.cache
def config() -> VllmConfig:
    return VllmConfig()


def context(mode: CUDAGraphMode, size: int, metadata: Any = None, layers: Mapping[str, Any] | None = None) -> Any:
    """Of one step: its mode, its number of tokens, attention's metadata and the layers that are looked up by name."""
    made = ForwardContext(
        no_compile_layers=dict(layers or {}),
        attn_metadata=metadata,
        slot_mapping={},
        cudagraph_runtime_mode=mode,
        batch_descriptor=BatchDescriptor(num_tokens=size),
    )
    made.capturing = False  # as vllm-ascend adds it
    return made
