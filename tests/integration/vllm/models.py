"""Small models of random weights, one per architecture of vLLM: their configurations, and the values of their weights.

Values are of a size with which attention, norms and experts decide on the tokens: vLLM's own dummy weights are so small
that every token is about as likely as any other, whatever a kernel does.
"""

from __future__ import annotations

import json
import math
import string
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# The sizes of latent attention are those of vLLM's CPU kernel.
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
ENCODER = {"num_key_value_heads": 4, "type_vocab_size": 2, "layer_norm_eps": 1e-6}


@dataclass(frozen=True)
class Model:
    """One small model."""

    architecture: str
    model_type: str
    family: str = "decoder"
    config: dict[str, Any] = field(default_factory=dict)
    ask: str = "generate"  # a name of requests.ASK
    engine: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, more: dict[str, Any]) -> None:
        """Its config.json, with further entries; the weights are made when they are loaded."""
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        (folder / "config.json").write_text(json.dumps({**COMMON, **named, **self.config, **more}))


POOLING = {"runner": "pooling"}
MODELS = {
    "llama": Model("LlamaForCausalLM", "llama"),
    "qwen2": Model("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Model("Qwen3ForCausalLM", "qwen3", config={"head_dim": 32}),
    "gemma2": Model("Gemma2ForCausalLM", "gemma2", config={"head_dim": 32, "query_pre_attn_scalar": 32}),
    "gemma3": Model(
        "Gemma3ForCausalLM",
        "gemma3_text",
        config={
            "sliding_window": 32,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "phi": Model("PhiForCausalLM", "phi", config={"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi3": Model("Phi3ForCausalLM", "phi3", config={"original_max_position_embeddings": 512}),
    "gpt2": Model(
        "GPT2LMHeadModel",
        "gpt2",
        config={"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 512, "num_key_value_heads": 4},
    ),
    "opt": Model(
        "OPTForCausalLM",
        "opt",
        config={"ffn_dim": 256, "word_embed_proj_dim": 128, "num_key_value_heads": 4},
    ),
    "bloom": Model("BloomForCausalLM", "bloom", config={"n_layer": 4, "n_head": 4, "num_key_value_heads": 4}),
    "mixtral": Model("MixtralForCausalLM", "mixtral", "moe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": Model("Qwen2MoeForCausalLM", "qwen2_moe", "moe", {**MOE, "shared_expert_intermediate_size": 128}),
    "qwen3_moe": Model("Qwen3MoeForCausalLM", "qwen3_moe", "moe", {**MOE, "head_dim": 32}),
    "gpt_oss": Model(
        "GptOssForCausalLM",
        "gpt_oss",
        "moe",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_theta": 10000.0,
        },
    ),
    "deepseek_v2": Model(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        "moe, latent attention",
        {**LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    ),
    "deepseek_v3": Model(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        "moe, latent attention",
        {
            **LATENT,
            "q_lora_rank": 64,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "mamba": Model(
        "MambaForCausalLM",
        "mamba",
        "state space",
        {"state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 8, "intermediate_size": 256},
    ),
    "mamba2": Model(
        "Mamba2ForCausalLM",
        "mamba2",
        "state space",
        {
            "state_size": 16,
            "conv_kernel": 4,
            "expand": 2,
            "head_dim": 32,
            "num_heads": 8,
            "n_groups": 1,
            "chunk_size": 32,
        },
    ),
    "jamba": Model(
        "JambaForCausalLM",
        "jamba",
        "hybrid",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "falcon_h1": Model(
        "FalconH1ForCausalLM",
        "falcon_h1",
        "hybrid",
        {
            "head_dim": 32,
            "mamba_d_ssm": 256,
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_n_groups": 1,
            "mamba_d_state": 16,
            "mamba_chunk_size": 32,
        },
    ),
    "granite_hybrid": Model(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        "hybrid",
        {
            "layer_types": ["mamba", "attention"] * 2,
            "layers_block_type": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 128,
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_chunk_size": 32,
            "position_embedding_type": "rope",
        },
    ),
    "qwen3_next": Model(
        "Qwen3NextForCausalLM",
        "qwen3_next",
        "hybrid",
        {
            **MOE,
            "head_dim": 32,
            "shared_expert_intermediate_size": 128,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
        },
    ),
    "lfm2": Model(
        "Lfm2ForCausalLM",
        "lfm2",
        "hybrid",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "conv_L_cache": 3,
            "conv_dim": 128,
            "conv_dim_out": 128,
            "block_dim": 128,
            "block_ff_dim": 256,
            "block_multiple_of": 16,
        },
    ),
    "qwen2_vl": Model(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        "multimodal, text alone",
        {
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "vision_config": {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
            "image_token_id": 4,
            "video_token_id": 5,
            "vision_start_token_id": 6,
            "vision_end_token_id": 7,
        },
        engine={"limit_mm_per_prompt": {"image": 0, "video": 0}},
    ),
    "bert": Model("BertModel", "bert", "embedding", ENCODER, "embed", POOLING),
    "roberta": Model("RobertaModel", "roberta", "embedding", ENCODER, "embed", POOLING),
    "modernbert": Model(
        "ModernBertModel",
        "modernbert",
        "embedding",
        {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 32, "global_attn_every_n_layers": 2},
        "embed",
        POOLING,
    ),
    "qwen3_embedding": Model(
        "Qwen3ForCausalLM", "qwen3", "embedding", {"head_dim": 32}, "embed", {**POOLING, "convert": "embed"}
    ),
    "bert_cross_encoder": Model(
        "BertForSequenceClassification", "bert", "cross-encoder", {**ENCODER, "num_labels": 1}, "score", POOLING
    ),
    "xlm_roberta_cross_encoder": Model(
        "XLMRobertaForSequenceClassification",
        "xlm-roberta",
        "cross-encoder",
        {**ENCODER, "num_labels": 1},
        "score",
        POOLING,
    ),
}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of one token per letter, and as many words as the vocabulary is large."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_letters + string.digits + " .,"
    words = ["<s>", "</s>", *letters]
    words += [f"{a}{b}" for a in "bcdfghjklmnp" for b in string.ascii_letters][: COMMON["vocab_size"] - len(words)]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="."))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def register_loader() -> str:
    """Makes vLLM know the load format `small`, and returns its name.

    Called in each process that runs a model. A process asks the kernel before it may use AMX; vLLM leaves that to
    oneDNN, which layers as small as these never reach, so that its attention would die of an illegal instruction.
    """
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()

    @register_model_loader("small")
    class SmallLoader(DummyModelLoader):
        def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
            super().load_weights(model, model_config)  # what is quantised while it loads is made there
            for name, tensor in model.state_dict().items():
                fill(name, tensor)

    return "small"


def fill(name: str, tensor: torch.Tensor, seed: int = 0) -> None:
    """Random values of a usual size for one weight, the same in each run: they follow from its name."""
    chosen = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    shape = tensor.shape
    last = name.rpartition(".")[2]
    if not tensor.is_floating_point():
        if last == "g_idx":
            return
        ends = torch.iinfo(tensor.dtype)
        tensor.data.copy_(torch.randint(ends.min, ends.max, shape, generator=chosen, dtype=torch.int64))
        return
    if "scale" in last:
        value = torch.rand(shape, generator=chosen) * 0.01 + 0.005
    elif last in ("A", "A_log"):  # how fast a state decays
        value = -1.0 - 3.0 * torch.rand(shape, generator=chosen)
        value = value if last == "A" else value.abs().log()
    elif tensor.dim() < 2:
        value = torch.randn(shape, generator=chosen) * 0.1 + (1.0 if "norm" in name or "ln_" in name else 0.0)
    else:
        value = torch.randn(shape, generator=chosen) / math.sqrt(shape[-1])
    tensor.data.copy_(value)
