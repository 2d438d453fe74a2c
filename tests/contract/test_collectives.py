"""Collectives go on after their call has returned: a replay waits for them, or the capture is refused.

Two processes over gloo. Each prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import graphmode
from graphmode.errors import CaptureError

N, CALLS = 384, 24  # large enough that a sum is not there when its call returns


def _functional(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    y = x @ w
    dist.all_reduce(y)
    parts = torch.empty(2 * N, N)
    dist.all_gather_into_tensor(parts, y @ w)
    mine = torch.empty(N // 2, N)
    dist.reduce_scatter_tensor(mine, torch.relu(y) + 1)
    return y, parts * 2, mine - 1


def compiled() -> dict[str, Any]:
    """Dynamo's functional collectives, replayed."""
    g = torch.compile(_functional, backend="graphmode", fullgraph=True)
    w, wrong = torch.eye(N), 0
    with torch.inference_mode():
        for i in range(CALLS):
            x = torch.full((N, N), float(i + dist.get_rank()))
            wrong += not all(torch.equal(a, b) for a, b in zip(g(x, w), _functional(x, w), strict=True))
    return {"wrong": wrong, "replays": graphmode.report().replays}


def between() -> dict[str, Any]:
    """A collective that one graph begins and another one waits for, with Python between."""

    def begin(x: Tensor) -> Tensor:
        return torch.ops._c10d_functional.all_reduce(x * 1, "sum", "0")

    def end(y: Tensor) -> Tensor:
        return torch.ops._c10d_functional.wait_tensor(y) + 1

    first = torch.compile(begin, backend="graphmode", fullgraph=True)
    second = torch.compile(end, backend="graphmode", fullgraph=True)
    wrong = 0
    with torch.inference_mode():
        for i in range(CALLS):
            x = torch.full((N, N), float(i + dist.get_rank()))
            live = begin if i % 2 else first  # the second graph is replayed behind a live collective, too
            wrong += not torch.equal(second(live(x)), torch.full((N, N), 2.0 * i + 2))
    return {"wrong": wrong, "replays": graphmode.report().replays}


def raw() -> dict[str, Any]:
    """torch.distributed's own calls in a raw graph."""
    y = torch.ones(N, N)
    try:
        with graphmode.Graph():
            dist.all_reduce(y)
    except CaptureError as error:
        return {"error": str(error)}
    return {}


def _process(what: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    print("FOUND", json.dumps(globals()[what]()), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def _on_two_ranks(what: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.contract.test_collectives", what, str(rank)],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        done = [p.communicate(timeout=240) for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    lines = [line for out, _ in done for line in out.splitlines() if line.startswith("FOUND ")]
    assert len(lines) == 2, done
    return [json.loads(line.removeprefix("FOUND ")) for line in lines]


@pytest.mark.parametrize("what", ["compiled", "between"])
def test_a_replay_waits_for_its_collectives(what: str) -> None:
    for found in _on_two_ranks(what):
        assert found["wrong"] == 0 and found["replays"] > CALLS / 2


def test_a_raw_graph_refuses_a_collective_that_nothing_recorded_waits_for() -> None:
    for found in _on_two_ranks("raw"):
        assert "c10d::allreduce_" in found["error"] and "outside the block" in found["error"]


if __name__ == "__main__":
    _process(sys.argv[1], int(sys.argv[2]))
