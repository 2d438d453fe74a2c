"""Mixtures of experts: which weights a token meets depends on the token."""

from typing import Any

from .case import Case
from .decoders import decoder


def experts(name: str, model_class: str, ways: str, **settings: Any) -> list[Case]:
    return decoder(name, model_class, ways, family="moe", **settings)


V3 = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
DBRX = {
    "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}

CASES: list[Case] = [
    *experts("mixtral", "MixtralForCausalLM", "prompt static"),
    *experts("qwen2_moe", "Qwen2MoeForCausalLM", "static"),
    *experts("qwen3_moe", "Qwen3MoeForCausalLM", "prompt static"),
    *experts("olmoe", "OlmoeForCausalLM", "static"),
    *experts("gpt_oss", "GptOssForCausalLM", "prompt static"),
    *experts("deepseek_v2", "DeepseekV2ForCausalLM", "prompt static", first_k_dense_replace=1),
    *experts("deepseek_v3", "DeepseekV3ForCausalLM", "prompt dynamic static", **V3),
    *experts("phimoe", "PhimoeForCausalLM", "static"),
    *experts("jetmoe", "JetMoeForCausalLM", "dynamic"),
    *experts("granitemoe", "GraniteMoeForCausalLM", "static"),
    *experts("granitemoeshared", "GraniteMoeSharedForCausalLM", "static"),
    *experts("dots1", "Dots1ForCausalLM", "static", n_shared_experts=1, first_k_dense_replace=1),
    *experts("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", "static"),
    *experts("glm4_moe", "Glm4MoeForCausalLM", "static"),
    *experts("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", "static"),
    *experts("minimax", "MiniMaxForCausalLM", "prompt", block_size=8),
    *experts("flex_olmo", "FlexOlmoForCausalLM", "static"),
    *experts("dbrx", "DbrxForCausalLM", "dynamic", **DBRX),
    *experts("llama4_text", "Llama4ForCausalLM", "static"),
    *experts("afmoe", "AfmoeForCausalLM", "static"),
    *experts("longcat_flash", "LongcatFlashForCausalLM", "dynamic", expert_ffn_hidden_size=48, zero_expert_num=2),
]
