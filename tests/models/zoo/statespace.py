"""State-space and recurrent decoders, and hybrids of them with attention."""

from typing import Any

from .case import Case
from .decoders import decoder


def recurrent(name: str, model_class: str, ways: str, **settings: Any) -> list[Case]:
    return decoder(name, model_class, ways, family="state space", **settings)


GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

CASES: list[Case] = [
    *recurrent("mamba", "MambaForCausalLM", "prompt dynamic"),
    *recurrent("mamba2", "Mamba2ForCausalLM", "prompt dynamic", head_dim=16, n_groups=2),
    *recurrent("falcon_mamba", "FalconMambaForCausalLM", "prompt"),
    *recurrent("jamba", "JambaForCausalLM", "prompt dynamic", attn_layer_period=2, attn_layer_offset=1),
    *recurrent("bamba", "BambaForCausalLM", "prompt dynamic", attn_layer_indices=[1]),
    *recurrent(
        "zamba",
        "ZambaForCausalLM",
        "prompt",
        layers_block_type=["linear_attention", "hybrid", "hybrid"],
        num_hidden_layers=3,
    ),
    *recurrent("zamba2", "Zamba2ForCausalLM", "prompt", layers_block_type=["linear_attention", "hybrid"]),
    *recurrent("rwkv", "RwkvForCausalLM", "prompt"),
    *recurrent("recurrent_gemma", "RecurrentGemmaForCausalLM", "prompt dynamic", num_hidden_layers=3),
    *recurrent("falcon_h1", "FalconH1ForCausalLM", "prompt dynamic", mamba_d_ssm=64),
    *recurrent(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        "dynamic",
        layer_types=["linear_attention", "full_attention"],
    ),
    *recurrent("nemotron_h", "NemotronHForCausalLM", "dynamic", n_groups=2),
    *recurrent("lfm2", "Lfm2ForCausalLM", "dynamic static"),
    *recurrent("qwen3_next", "Qwen3NextForCausalLM", "prompt dynamic", **GATED_DELTA),
    *recurrent("olmo_hybrid", "OlmoHybridForCausalLM", "prompt"),
    *recurrent("xlstm", "xLSTMForCausalLM", "prompt", hidden_size=128, num_heads=2),
]
