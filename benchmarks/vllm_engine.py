"""One engine of vLLM in a worker process: starts it, answers a first prompt, and times decode steps.

Knows one peer at a time; the turns of the peers are `vllm.py`'s.
"""

import functools
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from graphmode.integrations.vllm.pages import VARIABLES

PEERS: dict[str, dict[str, Any]] = {  # the engine's arguments; the plug-in is allowed to graphmode alone
    "eager": {"enforce_eager": True},
    "default": {},
    "empty": {"compilation_config": {"mode": 2, "backend": "eager", "custom_ops": ["all"]}},
    "graphmode": {},
    "eager-huge-pages": {"enforce_eager": True},
    "graphmode-small-pages": {},
    "graphmode-one-by-one": {},
}
PARTS = {  # of a step, in vLLM 0.32: what its CPU model runner, its model and its scheduler do
    "model": ("runner", "_model_forward"),
    "logits": ("model", "compute_logits"),
    "inputs": ("runner", "_prepare_inputs"),
    "metadata": ("runner", "_build_attention_metadata"),
    "sampling": ("executor", "sample_tokens"),
    "schedule": ("scheduler", "schedule"),
    "outputs": ("scheduler", "update_from_output"),
}
GIB = 2**30
VOCABULARY = 40_000  # prompts are random tokens below it


def environment(peer: str, folder: Path) -> dict[str, str]:
    """Of a worker: caches of its own in `folder`, so that a start is cold unless the folder is used again."""
    # What the plug-in sets for vLLM's own processes; this one starts before the plug-in is asked.
    huge = VARIABLES if peer in ("graphmode", "graphmode-one-by-one", "eager-huge-pages") else {}
    one_by_one = {"GRAPHMODE_FUEL": "0"} if peer == "graphmode-one-by-one" else {}
    return {
        "VLLM_PLUGINS": "graphmode" if peer.startswith("graphmode") else "",
        **huge,
        **one_by_one,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


class Engine:
    """An offline engine, its steps made by hand."""

    def __init__(self, peer: str, model: str, memory: float, arguments: dict[str, Any]) -> None:
        """`memory`: GiB for weights, cache and all else. vLLM takes a part of the machine's, which others share."""
        here = Path(__file__).parent  # it has a vllm.py of its own, which would be imported in the package's place
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here.resolve()]
        from vllm import LLM
        from vllm.utils.cpu_resource_utils import get_memory_node_info

        self.peer = peer
        self.numbers = iter(range(10**9))
        self.random = random.Random(11)
        part = memory * GIB / get_memory_node_info().total_memory
        given = {"dtype": "bfloat16", "seed": 0, "disable_log_stats": True, "gpu_memory_utilization": part}
        self.llm = LLM(model=model, **given, **PEERS[peer], **arguments)

    def first_token(self) -> None:
        """Until a prompt of 16 tokens has its first one more."""
        self.steps(batch=1, tokens=1, prompt=16)

    def steps(self, batch: int, tokens: int, prompt: int = 16) -> list[float]:
        """Seconds of each step in which all of `batch` requests decode; the first two and the last are left out."""
        self._ask(batch, prompt, tokens)
        return self._run()[2:-1]

    def mixed(self, batch: int, prompts: list[int]) -> list[float]:
        """Seconds of each step that has a prompt of the given length in it, while `batch` requests decode."""
        if batch:
            self._ask(batch, 16, 4 + 3 * len(prompts))  # so many that none ends before the last prompt
            for _ in range(3):
                self._step()
        seconds = []
        for tokens in prompts:
            self._ask(1, tokens, 1)
            seconds.append(self._step())
            if batch:
                self._step()  # a step without a prompt, as between arrivals
        self._run()
        return seconds

    def _ask(self, requests: int, prompt: int, tokens: int) -> None:
        """Adds requests with prompts of `prompt` random tokens, for `tokens` tokens each."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for _ in range(requests):
            ids = [self.random.randrange(10, VOCABULARY) for _ in range(prompt)]
            self.llm.llm_engine.add_request(str(next(self.numbers)), {"prompt_token_ids": ids}, sampling)

    def _step(self) -> float:
        start = time.perf_counter()
        self.llm.llm_engine.step()
        return time.perf_counter() - start

    def _run(self) -> list[float]:
        seconds = []
        while self.llm.llm_engine.has_unfinished_requests():
            seconds.append(self._step())
        return seconds

    def parts(self, batch: int, tokens: int) -> dict[str, float]:
        """Median ms of each part of a decode step; `step` is the whole."""
        core = self.llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        owners = {"runner": runner, "model": runner.model, "executor": core.model_executor, "scheduler": core.scheduler}
        spent: dict[str, list[float]] = {part: [] for part in PARTS}

        def timed(part: str, call: Any) -> Any:
            @functools.wraps(call)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                start = time.perf_counter()
                try:
                    return call(*args, **kwargs)
                finally:
                    spent[part].append(time.perf_counter() - start)

            return wrapper

        for part, (owner, name) in PARTS.items():
            setattr(owners[owner], name, timed(part, getattr(owners[owner], name)))
        try:
            step = self.steps(batch, tokens)
        finally:
            for owner, name in PARTS.values():
                delattr(owners[owner], name)
        return {part: statistics.median(s) * 1000 for part, s in {"step": step, **spent}.items()}

    def state(self) -> dict[str, Any]:
        """Tokens that the key-value cache holds, memory in MB, and what graphmode counted."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        with open("/proc/self/status") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        found: dict[str, Any] = {
            "kv_tokens": cache.num_gpu_blocks * cache.block_size,
            "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
        }
        if self.peer.startswith("graphmode"):
            import graphmode

            report = graphmode.report()
            found["graphmode"] = {
                "graphs": report.graphs,
                "replays": report.replays,
                "fallbacks": sum(f.count for f in report.fallbacks),
                "bytes": report.bytes.total,
                "lower_seconds": report.lower_seconds,
                "capture_seconds": report.capture_seconds,
            }
        return found
