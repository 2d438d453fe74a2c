"""Makes any configuration class of transformers small: one table of sizes, applied to the fields a class has.

Only sizes are changed, through the class's own constructor; a model built from the result is the class's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, POSITIONS = 32, 48, 2, 4, 2, 8, 128, 64
IMAGE, PATCH, EXPERTS = 32, 8, 4

_FIELDS: list[tuple[Any, str]] = [
    (HIDDEN, "hidden_size d_model n_embd embed_dim embedding_size dim model_dim hidden_dim projection_dim"),
    (INNER, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff ffn_hidden_size n_inner mlp_dim"),
    (INNER, "dim_feedforward moe_intermediate_size decoder_intermediate_size"),
    (INNER, "shared_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (LAYERS, "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth"),
    (LAYERS, "num_decoder_layers num_encoder_layers"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (HEAD_DIM, "head_dim d_kv"),
    (VOCAB, "vocab_size src_vocab_size tgt_vocab_size"),
    (POSITIONS, "max_position_embeddings n_positions n_ctx max_source_positions max_target_positions"),
    (IMAGE, "image_size"),
    (PATCH, "patch_size"),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok moe_topk moe_k"),
    (16, "q_lora_rank kv_lora_rank"),
    (HEAD_DIM, "qk_rope_head_dim qk_nope_head_dim v_head_dim"),
    (8, "mamba_d_state state_size ssm_state_size"),
    (HEADS, "mamba_n_heads mamba_num_heads n_mamba_heads"),
    (16, "mamba_head_dim"),
    (8, "chunk_size mamba_chunk_size"),
    (16, "num_conv_pos_embeddings"),
    (4, "num_conv_pos_embedding_groups"),
]
SIZES: dict[str, Any] = {field: value for value, fields in _FIELDS for field in fields.split()}

# Sizes given per stage: made of as many numbers as the class has by default.
_STAGES: dict[str, Callable[[int], int]] = {
    "image_size": lambda stage: IMAGE,
    "depths": lambda stage: 1,
    "num_heads": lambda stage: 2,
    "num_attention_heads": lambda stage: 2,
    "hidden_sizes": lambda stage: 16 * (stage + 1),
    "embed_dims": lambda stage: 16 * (stage + 1),
    "embed_dim": lambda stage: 16 * (stage + 1),
    "conv_dim": lambda stage: 16,
}


def tiny(config_class: type[PretrainedConfig], **given: Any) -> PretrainedConfig:
    """`config_class` with each size in `SIZES` that it declares, sub-configurations included; `given` wins.

    A sub-configuration is given as a mapping of its own fields: `text_config={"num_hidden_layers": 1}`.
    Special tokens that would lie outside the small vocabulary become token 1.
    """
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    sizes = {name: value for name, value in SIZES.items() if name in fields}
    for name, default in fields.items():
        if isinstance(default, (list, tuple)):
            sizes.pop(name, None)
            if name in _STAGES:
                sizes[name] = type(default)(_STAGES[name](stage) for stage in range(len(default)))
        if _in_vocabulary(name, default) != default:
            sizes[name] = 1
    sizes |= _grouped_heads(fields)
    for name, part in _parts(config_class).items():
        wanted = given.get(name, None if part is None else {})
        if isinstance(wanted, dict):
            given[name] = _tiny_part(part, **wanted)
    return config_class(**(sizes | given))


def _in_vocabulary(name: str, value: Any) -> Any:
    return 1 if name.endswith("_token_id") and isinstance(value, int) and value >= VOCAB else value


def _grouped_heads(fields: dict[str, Any]) -> dict[str, int]:
    """Fewer key heads than query heads only where the class's own defaults have fewer."""
    heads, groups = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if not isinstance(heads, int) or not isinstance(groups, int):
        return {}
    return {"num_key_value_heads": HEADS if groups == heads else KV_HEADS}


def _parts(config_class: type[PretrainedConfig]) -> dict[str, PretrainedConfig | None]:
    """The sub-configurations that `config_class` makes by itself; None for those it can have and leaves out."""
    whole = config_class() if config_class.sub_configs else None
    return {name: getattr(whole, name, None) for name in config_class.sub_configs}


def _tiny_part(part: PretrainedConfig | None, model_type: str = "", **given: Any) -> PretrainedConfig:
    """A small `part`, or a configuration of another `model_type` in its place."""
    if model_type or part is None:
        return tiny(CONFIG_MAPPING[model_type], **given)
    return tiny(type(part), **(_set_by_whole(part) | given))


def _set_by_whole(part: PretrainedConfig) -> dict[str, Any]:
    """What a composite set otherwise than the part's own class does, sizes and what follows from them apart."""
    made = part.to_dict()
    sizes = {name: value for name, value in made.items() if name in SIZES or name in _STAGES}
    own = type(part)(**sizes).to_dict()
    return {
        name: _in_vocabulary(name, value)
        for name, value in made.items()
        if name not in part.sub_configs and own.get(name, ...) != value
    }
