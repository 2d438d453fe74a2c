"""The public suite: every case of models.py by name, with seeded inputs and further inputs to check.

Real weights for MiniLM and SmolLM2 (from the demo's loaders), seeded random weights for all others.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import nets
import torch
from case import Case
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECKS = 4


def draws(make: Callable[[torch.Generator], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """The timed inputs first, then the inputs to check: the same shapes, other values."""
    return [make(torch.Generator().manual_seed(seed)) for seed in range(1 + CHECKS)]


def case(model: str, step: nn.Module, make: Callable[[torch.Generator], Sequence[Tensor]], batch: int = 1) -> Case:
    inputs, *checks = draws(make)
    return Case(model, "fp32", batch, step.eval(), inputs, checks)


def token_ids(length: int, vocabulary: int) -> Callable[[torch.Generator], Sequence[Tensor]]:
    return lambda generator: (torch.randint(5, vocabulary, (1, length), generator=generator),)


def normal(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], Sequence[Tensor]]:
    return lambda generator: tuple(torch.randn(shape, generator=generator) for shape in shapes)


class FirstOutput(nn.Module):
    """A transformers model whose result is the tensor of its first output, not a dataclass of all."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)[0]


def minilm(tokens: int) -> Case:
    from embed import load

    _, model = load()
    return case(f"MiniLM-L6 {tokens} tokens", FirstOutput(model), token_ids(tokens, 30_000))


def smollm2_decode(dtype: str) -> Case:
    """A decode step after a live prefill: position and keys live in the static cache, as tensors."""
    from generate import Decoder

    decoder = Decoder(DTYPES[dtype], max_tokens=256)
    prompt = torch.arange(100, 132)[None]
    decoder.prefill(prompt)

    def rewind() -> None:
        for layer in decoder.cache.layers:
            layer.cumulative_length.fill_(prompt.shape[1])

    steps = draws(token_ids(1, decoder.model.config.vocab_size))
    state = [tensor for layer in decoder.cache.layers for tensor in (layer.keys, layer.values)]
    return Case("SmolLM2-135M decode", dtype, 1, decoder.step, steps[0], steps[1:], rewind, state, calls=200)


def resnet18() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
    return case("ResNet-18", FirstOutput(ResNetForImageClassification(config)), normal((1, 3, 224, 224)))


def vit_tiny() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=12, num_attention_heads=3)
    return case("ViT-Tiny", FirstOutput(ViTForImageClassification(config)), normal((1, 3, 224, 224)))


def moe() -> Case:
    from transformers import MixtralConfig, MixtralModel

    config = MixtralConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=8,
        vocab_size=1000,
        max_position_embeddings=256,
        use_cache=False,
    )
    return case("MoE, 4 x 8 experts", FirstOutput(MixtralModel(config)), token_ids(16, 1000))


def dlrm() -> Case:
    def make(generator: torch.Generator) -> Sequence[Tensor]:
        dense = torch.rand((16, 13), generator=generator)
        return dense, torch.randint(0, 10_000, (26, 16, 4), generator=generator)

    return case("DLRM-like", nets.Dlrm(), make, batch=16)


PUBLIC: dict[str, Callable[[], Case]] = {
    "mlp": lambda: case("MLP 64-256-256-18", nets.mlp(), normal((1, 64))),
    "gru-step": lambda: case("GRU step", nets.GruStep(), normal((1, 256), (1, 256), (1, 256))),
    "lstm": lambda: case("LSTM, 32 steps", nets.Lstm(), normal((1, 32, 128))),
    "dlrm": dlrm,
    "moe": moe,
    "minilm-16": lambda: minilm(16),
    "minilm-128": lambda: minilm(128),
    "vit-tiny": vit_tiny,
    "resnet18": resnet18,
    "smollm2-bf16": lambda: smollm2_decode("bf16"),
    "smollm2-fp32": lambda: smollm2_decode("fp32"),
}
SUITES = {"public": PUBLIC}


def build(name: str) -> Case:
    """The case of that name, in whichever suite it is."""
    return next(suite[name] for suite in SUITES.values() if name in suite)()
