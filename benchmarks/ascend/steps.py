"""One model by one backend, in a process of its own over the emulated NPU: `python steps.py MODEL BACKEND`.

Answers with what a step does, as JSON; then each line of its input asks for one block of steps, so that backends can
take turns. Host time is this thread's own processor time: the emulation's threads share the cores, so wall time would
say little. The bare replay is an NPUGraph of the same call, captured by hand, whose inputs lie still.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import ascend_sim
import torch
from nets import CASES, Case
from processes import tell

import graphmode

COMPARED, WARM, CALLS = 8, 5, 10


def host_us(call: Callable[[int], Any]) -> float:
    """Processor time of a call, in us, over a block of calls in which nothing waits for the device."""
    torch.npu.synchronize()
    start = time.thread_time()
    for n in range(CALLS):
        call(n)
    found = (time.thread_time() - start) * 1e6 / CALLS
    torch.npu.synchronize()
    return found


def on_npu(case: Case, n: int) -> tuple[torch.Tensor, ...]:
    return tuple(t.npu() for t in case.inputs(n))


def captured_by_hand(case: Case, given: tuple[torch.Tensor, ...]) -> torch.npu.NPUGraph:
    for _ in range(2):
        case.step(*given)
    graph = torch.npu.NPUGraph()
    torch.npu.synchronize()
    with torch.npu.graph(graph):
        case.step(*given)
    return graph


def compiled(case: Case, backend: str) -> Callable[..., Any]:
    if backend == "eager":
        return case.step
    if backend == "graphmode.compile":
        return graphmode.compile(case.step)
    return torch.compile(case.step, backend=backend, dynamic=False)


def main(name: str, backend: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.eval()
    with torch.no_grad():
        want = [case.step(*case.inputs(n)) for n in range(COMPARED)]
        weights = case.model.state_dict()
        by_hand = fresh(name, weights)  # it, and what it is called with, live as long as the graph
        its_own = on_npu(by_hand, 0)
        graph = None if backend == "eager" else captured_by_hand(by_hand, its_own)
        case = fresh(name, weights)
        gc.collect()
        torch.npu.empty_cache()
        reserved, used = torch.npu.memory_reserved(), ascend_sim.usage()
        step = compiled(case, backend)
        got = [step(*on_npu(case, n)).cpu() for n in range(COMPARED)]
        row: dict[str, Any] = {"model": name, "backend": backend, "of": COMPARED}
        row["right"] = sum(torch.equal(g, w) for g, w in zip(got, want, strict=True))
        for n in range(WARM):
            step(*on_npu(case, COMPARED + n))
        given = on_npu(case, COMPARED + WARM)
        before = ascend_sim.calls()
        result = step(*given)
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
        tell(row)
        done = COMPARED + WARM + 1
        for _ in sys.stdin:
            inputs = [on_npu(case, done + n) for n in range(CALLS)]
            done += CALLS
            bare = host_us(lambda n: graph.replay()) if graph is not None else 0.0
            tell({"bare_us": bare, "host_us": host_us(lambda n, given=inputs: step(*given[n]))})


def fresh(name: str, weights: dict[str, torch.Tensor]) -> Case:
    """The case anew with the same weights, so that caches begin empty; on the NPU."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.load_state_dict(weights)
    case.model.eval().npu()
    return case


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
