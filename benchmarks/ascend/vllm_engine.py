"""One offline engine of vllm-ascend over the emulated NPU, in this process: `python vllm_engine.py JSON`.

Each line of its input asks for a block of requests; it prints their answers and what a decode step took, and at the
end what the device holds, as JSON. `vllm_modes.py` starts it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from processes import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/integration/vllm"), str(ROOT / "examples")]

LIMITS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "num_gpu_blocks_override": 32,
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "skip_tokenizer_init": True,
}


@contextmanager
def folder_of(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model's folder, and how it is loaded."""
    if model == "smollm2":
        from generate import checkpoint

        yield str(checkpoint()), {}
        return
    from models import MODELS, register_loader

    with tempfile.TemporaryDirectory() as name:
        MODELS[model].write(Path(name), {})
        yield name, {"load_format": register_loader()}


def prompts(count: int) -> list[list[int]]:
    """Tokens of prompts of 1 to 12 tokens, the same in each run."""
    chosen = random.Random(7)
    return [[chosen.randrange(4, 512) for _ in range(chosen.randint(1, 12))] for _ in range(count)]


class Steps:
    """What the engine's decode steps took, one by one."""

    def __init__(self) -> None:
        self.host: list[float] = []  # microseconds of this thread
        self.wall: list[float] = []
        self.calls: list[dict[str, int]] = []

    def generate(self, engine: Any, asked: list[list[int]], tokens: int) -> list[list[int]]:
        """Greedy tokens of requests that come together. Their prompts share the first step; the rest decode."""
        import ascend_sim
        from vllm import SamplingParams

        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        names = [f"{id(self)}-{time.perf_counter_ns()}-{i}" for i in range(len(asked))]
        for name, prompt in zip(names, asked, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, how)
        found: dict[str, list[int]] = {}
        number = 0
        while engine.has_unfinished_requests():
            before, host, wall = ascend_sim.calls(), time.thread_time(), time.perf_counter()
            outputs = engine.step()
            host, wall = time.thread_time() - host, time.perf_counter() - wall
            made = Counter(ascend_sim.calls())
            made.subtract(before)
            number += 1
            if 1 < number < tokens:
                self.host.append(host * 1e6)
                self.wall.append(wall * 1e6)
                self.calls.append({k: n for k, n in made.items() if n})
            found.update({o.request_id.partition("#")[0]: list(o.outputs[0].token_ids) for o in outputs if o.finished})
        return [found[name] for name in names]

    def summary(self) -> dict[str, Any]:
        """Medians of all steps."""
        total = [sum(made.values()) for made in self.calls]
        kinds = sorted({kind for made in self.calls for kind in made})
        return {
            "steps": len(total),
            "host_us": statistics.median(self.host),
            "wall_us": statistics.median(self.wall),
            "calls": statistics.median(total),
            "by_call": {k: statistics.median(made.get(k, 0) for made in self.calls) for k in kinds},
        }


def main(model: str, engine: dict[str, Any]) -> None:
    """Serves blocks until the input ends: lines of `batch`, `prompts` and `tokens`, numbers all.

    Args:
        model: a name that `folder_of` knows
        engine: further arguments of vLLM's engine
    """
    import ascend_sim
    from vllm import LLM

    captured = _watch_captures()
    with folder_of(model) as (folder, loading):
        began = time.perf_counter()
        llm = LLM(model=folder, disable_log_stats=True, **{**LIMITS, **loading, **engine})
        start_s = time.perf_counter() - began
    mode = str(llm.llm_engine.vllm_config.compilation_config.cudagraph_mode)
    tell({"start_s": start_s, "captured": captured, "mode": mode})
    for line in sys.stdin:
        asked: dict[str, int] = json.loads(line)
        steps, all_prompts, answers = Steps(), prompts(asked["prompts"]), []
        for i in range(0, len(all_prompts), asked["batch"]):
            some = all_prompts[i : i + asked["batch"]]
            answers += steps.generate(llm.llm_engine, some, asked["tokens"])
        tell({"answers": answers, "steps": steps.summary()})
    end: dict[str, Any] = {"usage": vars(ascend_sim.usage())}
    if "graphmode.integrations.vllm_ascend.platform" in sys.modules:
        end["graphmode"] = _what_graph_mode_did()
    tell(end)


def _watch_captures() -> dict[str, float]:
    """Seconds and device memory of all captures: of what lies between vLLM's leave to capture and its end."""
    import torch
    from vllm.compilation import monitor

    captured = {"seconds": 0.0, "bytes": 0.0}
    allow = monitor.set_cudagraph_capturing_enabled

    def watched(enabled: bool) -> None:
        torch.npu.synchronize()
        torch.npu.empty_cache()
        now, held, sign = time.perf_counter(), torch.npu.memory_reserved(), -1 if enabled else 1
        captured["seconds"] += sign * now
        captured["bytes"] += sign * held
        allow(enabled)

    monitor.set_cudagraph_capturing_enabled = watched  # before the model runner imports it
    return captured


def _what_graph_mode_did() -> dict[str, Any]:
    import graphmode
    from graphmode.devices.adapter import device_named

    report = graphmode.report()
    return {
        "graphs": report.graphs,
        "captures": report.captures,
        "capture_s": report.capture_seconds,
        "replays": report.replays,
        "live_calls": report.live_calls,
        "notes": report.notes,
        "fallbacks": {f.reason: f.count for f in report.fallbacks},
        "pool": device_named("npu").pool_bytes(),
    }


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
