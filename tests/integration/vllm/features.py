"""Features of vLLM that are tried in graph mode: what the engine is given, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Feature:
    """One feature on one small model."""

    says: str
    engine: dict[str, Any] = field(default_factory=dict)
    ask: str = "generate"
    model: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)  # further entries of config.json
    tokenizer: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    must: tuple[str, ...] = ()  # vLLM's counters that may not be 0 at the end

    def asked(self) -> dict[str, Any]:
        """What engine.main takes."""
        return {name: getattr(self, name) for name in Feature.__dataclass_fields__ if name != "says"}


def _int8(dynamic: bool) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {**weights, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return _quantised(
        "compressed-tensors", format="int-quantized", config_groups={"group_0": group}, ignore=["lm_head"]
    )


def _quantised(method: str, **how: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **how}}


_FEW_BLOCKS = {"num_gpu_blocks_override": 10, "block_size": 32, "max_model_len": 256}
_REPEATED = ("vllm:prefix_cache_hits",)
FEATURES = {
    "LoRA": Feature("one adapter, and none", {"enable_lora": True, "max_lora_rank": 8}, "lora"),
    "ngram speculation": Feature(
        "3 tokens looked up in the prompt",
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}},
        "repetitive",
        must=("vllm:spec_decode_num_draft_tokens",),
    ),
    "draft model": Feature(
        "3 tokens drafted by a second model",
        {"speculative_config": {"method": "draft_model", "model": "{folder}", "num_speculative_tokens": 3}},
        must=("vllm:spec_decode_num_draft_tokens",),
    ),
    "prefix caching": Feature("on", {"enable_prefix_caching": True, "block_size": 32}, "shared_prefix", must=_REPEATED),
    "no prefix caching": Feature("off", {"enable_prefix_caching": False}, "shared_prefix"),
    "chunked prefill": Feature("at most 16 tokens a step", {"max_num_batched_tokens": 16}),
    "no chunked prefill": Feature("off", {"enable_chunked_prefill": False}),
    "preemption": Feature("10 blocks of 32 tokens", _FEW_BLOCKS, "long", must=("vllm:num_preemptions",)),
    "preemption, chunked, cached": Feature(
        "all three",
        {**_FEW_BLOCKS, "max_num_batched_tokens": 16, "enable_prefix_caching": True},
        "long",
        must=("vllm:num_preemptions",),
    ),
    "preemption, mixture": Feature(
        "10 blocks of 32 tokens", _FEW_BLOCKS, "long", "mixtral", must=("vllm:num_preemptions",)
    ),
    "float32": Feature("dtype", {"dtype": "float32"}),
    "float16": Feature("dtype", {"dtype": "float16"}),
    "max_num_seqs 1": Feature("one request at a time", {"max_num_seqs": 1}),
    "max_num_seqs 3": Feature("three at a time", {"max_num_seqs": 3}),
    "max_num_seqs 64": Feature("64 at a time", {"max_num_seqs": 64}, "many"),
    "max_graphs 2": Feature("graphs evicted all the time", {"additional_config": {"graphmode": {"max_graphs": 2}}}),
    "sampling": Feature("temperature 0.8, top-p, top-k, penalties, seeds, n=2", ask="sampled"),
    "log-probabilities": Feature("5 of each token and of the prompt's", ask="log_probabilities"),
    "structured output": Feature("a regular expression, a choice", ask="structured", tokenizer=True),
    "beam search": Feature("width 3", ask="beams", tokenizer=True),
    "weights reloaded": Feature("collective_rpc('reload_weights')", ask="reloaded"),
    "weights written": Feature("in place, in the module", ask="written"),
    "sleep and wake": Feature("levels 1 and 2", {"enable_sleep_mode": True}, "slept"),
    "cache reset": Feature("reset_prefix_cache between the waves", {"enable_prefix_caching": True}, "cache_reset"),
    "requests given up": Feature("aborted in flight", ask="given_up"),
    "fp8 cache": Feature("kv_cache_dtype fp8", {"kv_cache_dtype": "fp8"}),
    "int8 W8A8, dynamic": Feature("compressed-tensors", config=_int8(dynamic=True)),
    "int8 W8A8, static": Feature("compressed-tensors", config=_int8(dynamic=False)),
    "AWQ": Feature("4 bits", config=_quantised("awq", bits=4, group_size=32, zero_point=True, version="gemm")),
    "GPTQ": Feature("4 bits", config=_quantised("gptq", bits=4, group_size=32, desc_act=False, sym=True)),
    "fp8 weights": Feature("quantised while they load", {"quantization": "fp8"}),
    "Transformers' modelling": Feature("model_impl transformers", {"model_impl": "transformers"}),
    "second model runner": Feature("VLLM_USE_V2_MODEL_RUNNER", environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    "sliding window, preempted": Feature(
        "Gemma 3, two cache groups",
        {"num_gpu_blocks_override": 20, "block_size": 32, "max_model_len": 256},
        "long",
        "gemma3",
        must=("vllm:num_preemptions",),
    ),
}
