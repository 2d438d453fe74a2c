"""Tensor parallel 2: equal answers, the same graphs on both ranks, and what happens when a rank falls back or dies.

Run as a program, this file is one offline engine with two workers, `python test_parallel.py JSON`: they are spawned,
load it again, and so know the load format and what is asked of their rank.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

RANKS = 2
SECONDS = 240.0  # for one engine with its workers
ENDS = 60.0  # seconds in which a service without one of its workers has ended
# Two workers on two cores: each is bound to one, and vLLM's own choice would leave the second without any.
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


# --- the engine, and what its workers do at their start ---------------------------------------------------------------


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """One engine: its answers, and what each rank counted and captured."""
    from asking import generate, waves
    from models import MODELS
    from vllm import LLM

    with tempfile.TemporaryDirectory() as name:
        MODELS[asked["model"]].write(Path(name), {})
        engine = LLM(
            model=name,
            load_format="small",
            skip_tokenizer_init=True,
            tensor_parallel_size=RANKS,
            max_model_len=256,
            max_num_seqs=8,
            num_gpu_blocks_override=64,
            **asked["engine"],
        )
        answers = generate(engine, waves()[: asked.get("waves", 10)])
        return {"answers": answers, "ranks": engine.collective_rpc(what_this_rank_did)}


def what_this_rank_did(_worker: Any) -> dict[str, Any]:
    """Counters of one worker, and the collectives in its graphs and in its programs."""
    from vllm.distributed.parallel_state import get_tp_group

    import graphmode
    from graphmode.inspect.counters import ledger

    report = graphmode.report()
    dumps = [g.debug_dump() for r in ledger.regions() for g in r.graphs.values()]
    counted = ("graphs", "captures", "replays", "warmups", "breaks", "live_calls", "notes")
    return {
        **{name: getattr(report, name) for name in counted},
        "fallbacks": [f.reason for f in report.fallbacks],
        "communicator": type(get_tp_group().device_communicator.dist_module).__name__,
        "collectives": [sorted(re.findall(r"_C::shm_\w+|c10d\w*::\w+", d)) for d in dumps],
    }


def at_the_start_of_a_worker() -> None:
    """What `WORKERS` asks for, in the process of that rank: options, and another communicator than shared memory."""
    asked = json.loads(os.environ.get("WORKERS", "{}"))
    rank = multiprocessing.current_process().name.rpartition("-")[2]
    os.environ.update(asked.get(rank, {}))
    if asked.get("gloo"):
        from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

        CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False


if __name__ in ("__main__", "__mp_main__"):
    from models import register_loader

    register_loader()
    if __name__ == "__mp_main__":
        at_the_start_of_a_worker()
    else:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        print("FOUND " + json.dumps(main(json.loads(sys.argv[1]))))
        sys.exit()


# --- tests ------------------------------------------------------------------------------------------------------------

import pytest  # noqa: E402

pytest.importorskip("vllm", reason="make install-vllm installs it")
pytestmark = pytest.mark.slow

import psutil  # noqa: E402
import torch  # noqa: E402
from server import Server, serving  # noqa: E402

EAGER = json.dumps({"enforce_eager": True})


@functools.cache
def run(engine: str = "{}", workers: str = "{}", model: str = "llama") -> dict[str, Any]:
    """One engine in processes of its own. A rank that waits for the other for ever is a failure, and is ended."""
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    asked = json.dumps({"model": model, "engine": json.loads(engine)})
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **given, **ONE_THREAD, "WORKERS": workers},
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the session that was started above
            process.wait()
    lines = [line for line in said.splitlines() if line.startswith("FOUND ")]
    assert lines, said[-6000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FOUND "))
    return found


over_shared_memory = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(), reason="vLLM has its communicator over shared memory with AVX-512"
)


@pytest.mark.parametrize(
    "workers",
    [pytest.param("{}", id="shared memory", marks=over_shared_memory), pytest.param('{"gloo": true}', id="gloo")],
)
def test_answers_are_eager_s_and_both_ranks_do_the_same(workers: str) -> None:
    ours, eager = run(workers=workers), run(EAGER, workers)
    assert ours["answers"] == eager["answers"]
    first, second = ours["ranks"]
    assert first == second and first["replays"] > 50
    assert first["communicator"] == eager["ranks"][0]["communicator"]
    assert (first["communicator"] == "_CPUSHMDistributed") == (workers == "{}")


@over_shared_memory
def test_collectives_over_shared_memory_are_captured_each_of_them_on_both_ranks() -> None:
    for rank in run()["ranks"]:
        # Two in each of four layers and one for the embedding.
        assert rank["collectives"] == [["_C::shm_allreduce"] * 9] * rank["graphs"] and rank["graphs"] > 0
        assert rank["breaks"] == 0 and rank["live_calls"] == 0 and rank["fallbacks"] == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("MAX_BYTES", "1"),
        ("MODE", "eager"),
        ("CAPTURE_AFTER", "4"),
        ("VERIFY", "1"),  # which would replay each new graph on this rank alone
        ("MAX_GRAPHS", "1"),
    ],
)
def test_a_rank_alone_that_falls_back_or_captures_at_another_time_makes_nobody_wait(option: str, value: str) -> None:
    ours = run(workers=json.dumps({"1": {f"GRAPHMODE_{option}": value}}))
    assert ours["answers"] == run(EAGER)["answers"]
    usual, other = ours["ranks"]
    assert usual == run()["ranks"][0]  # what the other rank does is nothing to this one
    assert other != usual
    if option == "MAX_BYTES":  # each capture ran, as it must, and was then refused
        assert other["captures"] == 0 and other["live_calls"] > 50 and "max_bytes" in other["fallbacks"][0]


def alive(processes: list[psutil.Process]) -> list[str]:
    """Those that run still."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.NoSuchProcess:
            continue
    return found


def stream(server: Server, at_first: Callable[[], None], got: list[str]) -> None:
    """Lines of eight long answers, as they come; `at_first` is called at the first of them."""
    asked = {"model": "small", "prompt": ["hello"] * 8, "max_tokens": 240, "temperature": 0, "ignore_eos": True}
    body = json.dumps({**asked, "stream": True}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            for line in answer:
                if not got:
                    at_first()
                got.append(line.decode().strip())
    except (HTTPException, OSError) as error:
        got.append(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_service_and_leaves_no_process(rank: int) -> None:
    with serving("llama", "--tensor-parallel-size", str(RANKS), environment=ONE_THREAD) as server:
        for _ in range(2):
            server.complete("hello", 12)  # graphs are there
        everyone = psutil.Process(server.process.pid).children(recursive=True)
        (worker,) = [p for p in everyone if f"Worker_TP{rank}" in " ".join(p.cmdline())]
        got: list[str] = []
        client = threading.Thread(target=stream, args=(server, worker.kill, got))
        client.start()
        client.join(ENDS)
        assert not client.is_alive(), "the client waits for ever"
        told = [json.loads(line.removeprefix("data: ")) for line in got if line.startswith("data: {")]
        assert any("error" in one for one in told), "the client was told nothing"
        assert not any(c.get("finish_reason") for one in told for c in one.get("choices", ())), "it was over before"
        server.process.wait(ENDS)
        until = time.monotonic() + ENDS
        while alive(everyone) and time.monotonic() < until:
            time.sleep(0.2)
        assert alive(everyone) == []
