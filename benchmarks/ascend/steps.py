"""One model by one backend, in a process of its own over the emulated NPU: prints a row as JSON.

Host time is this thread's own processor time: the emulation's threads share the cores, so wall time would say little.
The bare replay is an NPUGraph of the same call, captured by hand, whose inputs lie still.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import ascend_sim
import torch
from nets import CASES, Case

import graphmode

WARM, COMPARED = 5, 8
BLOCKS, CALLS = 9, 10


def host_us(call: Callable[[int], Any]) -> float:
    """Median over blocks of the processor time of a call, in us. Within a block nothing waits for the device."""
    times = []
    for block in range(BLOCKS):
        torch.npu.synchronize()
        start = time.thread_time()
        for n in range(CALLS):
            call(block * CALLS + n)
        times.append((time.thread_time() - start) * 1e6 / CALLS)
    torch.npu.synchronize()
    return median(times)


def on_npu(case: Case, n: int) -> tuple[torch.Tensor, ...]:
    return tuple(t.npu() for t in case.inputs(n))


def bare_replay(case: Case) -> float:
    """us of host time of one launch of the call's graph."""
    given = on_npu(case, 0)
    for _ in range(2):
        case.step(*given)
    graph = torch.npu.NPUGraph()
    torch.npu.synchronize()
    with torch.npu.graph(graph):
        case.step(*given)
    found = host_us(lambda n: graph.replay())
    graph.reset()
    return found


def compiled(case: Case, backend: str) -> Callable[..., Any]:
    if backend == "eager":
        return case.step
    if backend == "graphmode.compile":
        return graphmode.compile(case.step, *on_npu(case, 0))
    return torch.compile(case.step, backend=backend, dynamic=False)


def measure(name: str, backend: str) -> dict[str, Any]:
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.eval()
    row: dict[str, Any] = {"model": name, "backend": backend}
    with torch.no_grad():
        want = [case.step(*case.inputs(n)) for n in range(COMPARED)]
        model = case.model
        theirs = {k: v.clone() for k, v in model.state_dict().items()}
        model.npu()
        row["bare_us"] = bare_replay(case) if backend != "eager" else 0.0
        del theirs
        case = fresh(name, case)
        gc.collect()
        torch.npu.empty_cache()
        reserved, used = torch.npu.memory_reserved(), ascend_sim.usage()
        step = compiled(case, backend)
        got = [step(*on_npu(case, n)).cpu() for n in range(COMPARED)]
        row["right"] = sum(torch.equal(g, w) for g, w in zip(got, want, strict=True))
        row["of"] = COMPARED
        inputs = [on_npu(case, COMPARED + n) for n in range(WARM + BLOCKS * CALLS + 1)]
        for n in range(WARM):
            step(*inputs[n])
        row["host_us"] = host_us(lambda n: step(*inputs[WARM + n]))
        before = ascend_sim.calls()
        result = step(*inputs[-1])
        after = ascend_sim.calls()
        torch.npu.synchronize()
        del result
        made = {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
        now = ascend_sim.usage()
        row["runtime_calls"] = sum(made.values())
        row["launches"] = made.get("aclmdlRIExecuteAsync", 0)
        row["kernels"] = made.get("aclrtLaunchKernel", 0)
        row["captures"] = now.captures - used.captures
        row["graphs"] = now.graphs - used.graphs
        row["tasks"] = now.graph_tasks - used.graph_tasks
        torch.npu.empty_cache()
        row["reserved_mib"] = round((torch.npu.memory_reserved() - reserved) / 2**20, 1)
    return row


def fresh(name: str, used: Case) -> Case:
    """The case anew with the same weights, so that caches begin empty."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.load_state_dict(copy.deepcopy(used.model.state_dict()))
    case.model.eval().npu()
    return case


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2])))
