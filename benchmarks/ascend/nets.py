"""The models of the Ascend benchmark: transformers' own, unmodified, at their real shapes with random weights.

Each case is a function of tensors, as a server calls it, and the tensors of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """What is compiled, and what it is called with."""

    model: nn.Module
    step: Callable[..., Any]
    inputs: Callable[[int], tuple[Tensor, ...]]  # of the n-th call; on the CPU


def minilm() -> Case:
    """A sentence encoder: 6 layers, 384 wide (all-MiniLM-L6)."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config, add_pooling_layer=False)

    def inputs(n: int) -> tuple[Tensor, ...]:
        return (torch.randint(1000, 30000, (1, 32), generator=_seeded(n)),)

    return Case(model, lambda ids: model(ids).last_hidden_state.mean(1), inputs)


def smollm2() -> Case:
    """One decoded token after a prompt in eager: 30 layers, 576 wide (SmolLM2-135M), a static key-value cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return _decoding(LlamaForCausalLM(config), config)


def deepseek() -> Case:
    """One decoded token, DeepSeek-V3-shaped: latent attention, 4 of 16 experts taken and one shared.

    The experts are transformers' `batched_mm`: its `grouped_mm`, unless in bfloat16, reads the groups on the host.
    """
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        first_k_dense_replace=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_rope_head_dim=16,
        qk_nope_head_dim=32,
        v_head_dim=32,
        vocab_size=4096,
        max_position_embeddings=512,
        experts_implementation="batched_mm",
    )
    return _decoding(DeepseekV3ForCausalLM(config), config)


def vit() -> Case:
    """An image classifier: 12 layers, 384 wide, 197 tokens (ViT-S/16)."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    model = ViTForImageClassification(config)

    def inputs(n: int) -> tuple[Tensor, ...]:
        return (torch.randn(1, 3, 224, 224, generator=_seeded(n)),)

    return Case(model, lambda pixels: model(pixels).logits, inputs)


def _decoding(model: nn.Module, config: Any) -> Case:
    from transformers import StaticCache

    caches: dict[str, Any] = {}

    def step(token: Tensor, position: Tensor) -> Tensor:
        cache = caches[token.device.type]
        return model(token, past_key_values=cache, cache_position=position).logits[:, -1]

    def inputs(n: int) -> tuple[Tensor, ...]:
        device = next(model.parameters()).device
        if device.type not in caches:
            caches[device.type] = StaticCache(config=config, max_cache_len=256)
            step(torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device))
        return torch.randint(0, config.vocab_size, (1, 1), generator=_seeded(n)), torch.tensor([n + 1])

    return Case(model, step, inputs)


def _seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


CASES: dict[str, Callable[[], Case]] = {"minilm": minilm, "smollm2": smollm2, "deepseek": deepseek, "vit": vit}
