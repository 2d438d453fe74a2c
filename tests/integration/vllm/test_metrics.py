"""graphmode's counters in vLLM's `/metrics`, its records in the log, and reports of a server's workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import graphmode

pytest.importorskip("vllm", reason="make install-vllm installs it")

from server import Server, serving

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # vLLM's own switch for /collective_rpc
COUNTED = ("captures", "replays", "warmups", "live_calls", "breaks", "evictions")


def workers(server: Server) -> list[dict[str, Any]]:
    """Every worker's report."""
    found: list[dict[str, Any]] = server.post("/collective_rpc", {"method": "graphmode_report"})["results"]
    return sorted(found, key=lambda r: r["rank"])


def huge_pages(process: int) -> int:
    """Bytes of a process that lie on huge pages."""
    rolled = Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(rolled.partition("AnonHugePages:")[2].split()[0]) * 1024


def shown(server: Server, replays: int) -> dict[str, dict[str, float]]:
    """The metrics, once every rank shows that many replays; they are written once a second."""
    until = time.monotonic() + 30
    while True:
        found = server.metrics("graphmode_")
        by_rank = found.get("graphmode_replays_total", {})
        if (by_rank and min(by_rank.values()) >= replays) or time.monotonic() > until:
            return found
        time.sleep(0.2)


def same(metrics: dict[str, dict[str, float]], reports: list[dict[str, Any]]) -> None:
    """Asserts that the metrics say what the workers say."""
    for r in reports:
        rank = str(r["rank"])
        assert {n: metrics[f"graphmode_{n}_total"][rank] for n in COUNTED} == {n: r[n] for n in COUNTED}
        assert metrics["graphmode_fallbacks_total"][rank] == sum(f["count"] for f in r["fallbacks"])
        assert metrics["graphmode_graphs"][rank] == r["graphs"]
        assert metrics["graphmode_arena_bytes"][rank] == r["bytes"]["arena"]
        assert metrics["graphmode_constant_bytes"][rank] == r["bytes"]["fixed"]
        assert metrics["graphmode_lowering_seconds_total"][rank] == r["lower_seconds"] > 0
        assert metrics["graphmode_capture_seconds_total"][rank] == r["capture_seconds"] > 0
    assert set(metrics["graphmode_replays_total"]) == {str(r["rank"]) for r in reports}


def asked(server: Server) -> list[dict[str, Any]]:
    """The workers' reports after a few requests that capture and replay."""
    for _ in range(3):
        server.complete("hello", 12)
        server.complete(["hello", "graph"], 12)
    return workers(server)


def test_a_server_shows_what_its_worker_counts() -> None:
    with serving(environment=DEVELOPMENT) as server:
        before = asked(server)
        assert before[0]["graphs"] >= 2 and before[0]["replays"] > 20
        same(shown(server, before[0]["replays"]), before)
        for process in server.processes():  # each of them may be asked, and goes on
            os.kill(process, signal.SIGUSR1)
        server.complete("hello", 12)
        (after,) = workers(server)
        assert after["replays"] > before[0]["replays"]
        same(shown(server, after["replays"]), [after])
        assert any(name.startswith("vllm:") for name in server.metrics("vllm:"))
        if "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
            worker = max(server.processes(), key=huge_pages)
            assert huge_pages(worker) > 100 * 2**20  # weights and cache
            assert "THP_enabled:\t0" in Path(f"/proc/{worker}/status").read_text()  # and nothing after them
    assert server.process.returncode == 0


@pytest.mark.slow
def test_each_tensor_parallel_worker_has_its_rank() -> None:
    given = {**DEVELOPMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with serving("llama", "--tensor-parallel-size", "2", environment=given) as server:
        reports = asked(server)
        assert [r["rank"] for r in reports] == [0, 1] and all(r["captures"] + r["live_calls"] > 0 for r in reports)
        same(shown(server, min(r["replays"] for r in reports)), reports)


@pytest.mark.slow
def test_each_of_several_api_servers_shows_them() -> None:
    with serving("llama", "--api-server-count", "2", environment=DEVELOPMENT) as server:
        reports = asked(server)
        for _ in range(6):  # whichever answers
            same(shown(server, reports[0]["replays"]), reports)


IN_PROCESS = """
import json, os, sys, tempfile, time
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1")
from pathlib import Path
from models import MODELS, register_loader
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
import graphmode
with tempfile.TemporaryDirectory() as folder:
    MODELS["llama"].write(Path(folder), {})
    engine = LLM(model=folder, load_format=register_loader(), skip_tokenizer_init=True,
                 max_model_len=256, num_gpu_blocks_override=64)
how = SamplingParams(max_tokens=12, ignore_eos=True, detokenize=False)
engine.generate([{"prompt_token_ids": [5, 6, 7]}], how, use_tqdm=False)
replays, until = graphmode.report().replays, time.monotonic() + 30
while REGISTRY.get_sample_value("graphmode_replays_total", {"rank": "0"}) != replays and time.monotonic() < until:
    time.sleep(0.1)
shown = REGISTRY.get_sample_value("graphmode_replays_total", {"rank": "0"})
print("FOUND", json.dumps([replays, shown, os.environ["GRAPHMODE_VLLM_METRICS"]]))
"""


def test_an_engine_in_this_process_shows_them_in_its_registry_and_leaves_no_files() -> None:
    import json

    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here}
    done = subprocess.run([sys.executable, "-c", IN_PROCESS], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    replays, shown_replays, folder = json.loads(lines[0].removeprefix("FOUND "))
    assert replays == shown_replays > 5
    assert not Path(folder).exists()


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def captures() -> Iterator[list[logging.LogRecord]]:
    core, kept = logging.getLogger("graphmode"), _Kept()
    level = core.level
    core.addHandler(kept)
    core.setLevel(logging.INFO)
    yield kept.records
    core.removeHandler(kept)
    core.setLevel(level)


def test_each_capture_leaves_one_record_with_its_size(captures: list[logging.LogRecord]) -> None:
    graphmode.reset()
    model = torch.compile(torch.nn.Linear(8, 8), backend="graphmode", dynamic=True)
    with torch.inference_mode():
        for rows in (3, 5):
            for _ in range(4):
                model(torch.ones(rows, 8))
    found = [r.args[0] for r in captures if r.args]
    assert [c.sizes for c in found] == [(3,), (5,)] and {c.model for c in found} == {"Linear"}
    assert len(found) == graphmode.report().captures == 2
    assert 0 < sum(c.seconds for c in found) <= graphmode.report().capture_seconds
    assert all(c.bytes.outputs >= rows * 8 * 4 for c, rows in zip(found, (3, 5), strict=True))
