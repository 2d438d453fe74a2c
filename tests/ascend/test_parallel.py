"""A layer whose weights lie on two NPUs, in two processes: eager's bits on both, by one launch a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ascend_sim import runtime

PROGRAM = """
import json, sys
import torch, torch.distributed as dist, torch.distributed._functional_collectives as funcol
import graphmode, ascend_sim
from torch import nn

rank, store, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.npu.set_device(rank)
dist.init_process_group("hccl", init_method=f"file://{store}", rank=rank, world_size=2)

class Parallel(nn.Module):  # columns of the first layer and rows of the second
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        whole = nn.Linear(16, 64), nn.Linear(64, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)
        self.bias = nn.Parameter(whole[1].bias.detach().clone())
        with torch.no_grad():
            self.up.weight.copy_(whole[0].weight.chunk(2)[rank])
            self.up.bias.copy_(whole[0].bias.chunk(2)[rank])
            self.down.weight.copy_(whole[1].weight.chunk(2, 1)[rank])

    def forward(self, x):
        y = self.down(nn.functional.gelu(self.up(x)))
        if how == "functional":
            y = funcol.all_reduce(y, "sum", dist.group.WORLD)
        else:
            dist.all_reduce(y)
        return y + self.bias

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Parallel(), Parallel()
    def forward(self, x):
        return x + self.second(self.first(x).relu())

with torch.no_grad():
    model = Net().npu().eval()
    compiled = torch.compile(model, backend="graphmode")
    equal = True
    for step in range(8):
        torch.manual_seed(step)
        x = torch.randn(4, 16).npu()
        want = model(x)
        torch.npu.synchronize()
        before, called = ascend_sim.usage(rank).executions, ascend_sim.calls()["HcclAllReduce"]
        got = compiled(x)
        torch.npu.synchronize()
        launches = ascend_sim.usage(rank).executions - before
        called = ascend_sim.calls()["HcclAllReduce"] - called
        equal = equal and torch.equal(got, want)
    report = graphmode.report()
    said = {"equal": equal, "launches": launches, "collectives_called": called, "graphs": report.graphs}
    said |= {"replays": report.replays, "captures": report.captures, "sum": want.sum().item()}
    print(json.dumps(said | {"fallbacks": [f.reason for f in report.fallbacks]}))
dist.destroy_process_group()
"""


@cache
def said_by_both(how: str, store: Path) -> list[dict[str, Any]]:
    settings = {"ASCEND_SIM": "1", "LD_LIBRARY_PATH": str(runtime.FOLDER), "HCCL_EXEC_TIMEOUT": "60"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(rank), str(store / how), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=150) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [json.loads(out) for out, _ in said]


@pytest.fixture(params=["functional", "in_place"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    store = tmp_path_factory.getbasetemp() / "stores"
    store.mkdir(exist_ok=True)
    return said_by_both(request.param, store)


def test_both_ranks_get_eager_s_bits_and_graphs_are_replayed(both: list[dict[str, Any]]) -> None:
    assert both[0]["sum"] == both[1]["sum"]
    for said in both:
        assert said["equal"] and said["replays"] >= 6 and said["captures"] == said["graphs"]


def test_a_step_is_one_launch_with_its_collectives(both: list[dict[str, Any]]) -> None:
    for said in both:
        assert said["launches"] == 1 and said["collectives_called"] == 0 and said["graphs"] == 1, said
