"""One offline engine of vLLM, in this process: `python engine.py JSON`. Prints tokens, logprobs and counters as JSON.

A small model of random weights, of the architecture that is asked for; prompts of mixed lengths come in two waves.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else a share of the machine is asked for

SMALL = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "sliding_window": 32,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
COMMON = {
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
}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Generates greedily; `asked` has the model's name and arguments of vLLM's engine."""
    import torch
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({**COMMON, **SMALL[asked["model"]]}))
        engine = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=256,
            max_num_seqs=8,
            num_gpu_blocks_override=asked.get("blocks", 64),
            **asked["engine"],
        )
        chosen = random.Random(7)
        sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=1, detokenize=False)
        answers = []
        for wave in ([1, 1], [5, 40, 1, 17, 33], [90, 2, 64, 7, 7, 3, 11, 29]):
            prompts = [{"prompt_token_ids": [chosen.randrange(2, 512) for _ in range(n)]} for n in wave]
            for out in engine.generate(prompts, sampling, use_tqdm=False):
                (best,) = out.outputs
                answers.append([list(best.token_ids), best.cumulative_logprob])
    found: dict[str, Any] = {"answers": answers, "threads": torch.get_num_threads()}
    if "graphmode" in sys.modules:
        import graphmode

        report = graphmode.report()
        found["report"] = {
            "graphs": report.graphs,
            "replays": report.replays,
            "notes": report.notes,
            "fallbacks": [f.reason for f in report.fallbacks],
        }
        from graphmode.inspect.counters import ledger

        dumps = [g.debug_dump() for r in ledger.regions() for g in r.graphs.values()]
        found["python_attention"] = sum("vllm::unified_attention" in d for d in dumps)
        found["direct_attention"] = sum("_C::cpu_attention_with_kv_cache" in d for d in dumps)
    return found


if __name__ == "__main__":
    print("FOUND " + json.dumps(main(json.loads(sys.argv[1]))))
