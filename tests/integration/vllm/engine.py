"""One offline engine of vLLM, in this process: `python engine.py JSON`. Prints answers and counters as JSON.

A small model of random weights, of the architecture that is asked for; see models.py and asking.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else a share of the machine is asked for
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from asking import ASK
from models import MODELS, register_loader, write_tokenizer

LIMITS = {"max_model_len": 256, "max_num_seqs": 8, "num_gpu_blocks_override": 64}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Asks one engine.

    `asked` has the model's name and arguments of vLLM's engine; for the rest see `features.Feature`.
    """
    os.environ.update(asked.get("environment", {}))
    import torch
    from vllm import LLM
    from vllm.config import CompilationMode

    model = MODELS[asked["model"]]
    must = asked.get("must", ())
    tokenizer = asked.get("tokenizer") or model.ask != "generate"  # vLLM pools nothing without one
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.write(folder, asked.get("config", {}))
        if tokenizer:
            write_tokenizer(folder)
        given = json.loads(json.dumps(asked["engine"]).replace("{folder}", name))
        chosen = {"load_format": register_loader(), **LIMITS, **model.engine, **given}
        engine = LLM(model=name, skip_tokenizer_init=not tokenizer, disable_log_stats=not must, **chosen)
        found: dict[str, Any] = {"answers": ASK[asked.get("ask", model.ask)](engine, folder)}
    if must:
        found["counted"] = {m.name: m.value for m in engine.get_metrics() if m.name in must}
    found["threads"] = torch.get_num_threads()
    found["compiled"] = engine.llm_engine.vllm_config.compilation_config.mode != CompilationMode.NONE
    if "graphmode" in sys.modules:
        found |= _what_graph_mode_did()
    return found


def _what_graph_mode_did() -> dict[str, Any]:
    import graphmode
    from graphmode.inspect.counters import ledger

    report = graphmode.report()
    regions = ledger.regions()
    dumps = [g.debug_dump() for r in regions for g in r.graphs.values()]
    return {
        "report": {
            "graphs": report.graphs,
            "replays": report.replays,
            "breaks": report.breaks,
            "live_calls": report.live_calls,
            "notes": report.notes,
            "fallbacks": [f.reason for f in report.fallbacks],
        },
        "programs": len(regions),
        "own_ops": sorted({op for d in dumps for op in re.findall(r"vllm::\w+", d)}),
        "python_attention": sum("vllm::unified_attention" in d for d in dumps),
        "direct_attention": sum("_C::cpu_attention_with_kv_cache" in d for d in dumps),
    }


if __name__ == "__main__":
    print("FOUND " + json.dumps(main(json.loads(sys.argv[1]))))
