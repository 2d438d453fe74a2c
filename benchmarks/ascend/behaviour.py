"""What a backend does where a server puts graphs to the test: one row in a process of its own, over the emulated NPU.

`python behaviour.py ROW BACKEND` prints what came of it as JSON: right, wrong (other values than eager's), or what it
raised. Results are compared with the same call in eager on the same device, bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ascend_sim
import torch
from processes import tell
from torch import Tensor, nn

Row = Callable[[str], str]


class Wrong(Exception):
    """A result differs from eager's; the message says where."""


def net(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8)).npu().eval()


def compiled(f: Callable[..., Any], backend: str, dynamic: bool = False) -> Callable[..., Any]:
    return torch.compile(f, backend=backend, dynamic=dynamic)


def same(got: Tensor, want: Tensor, where: str) -> None:
    if not torch.equal(got, want):
        raise Wrong(where)


def replays_in(calls: Callable[[], object]) -> int:
    torch.npu.synchronize()
    before = ascend_sim.usage().executions
    calls()
    torch.npu.synchronize()
    return ascend_sim.usage().executions - before


def hundred_shapes(backend: str) -> str:
    model = net()
    g = compiled(model, backend, dynamic=True)
    xs = [torch.randn(n, 16, device="npu") for n in range(2, 102)]
    for _ in range(3):
        for x in xs:
            same(g(x).clone(), model(x), f"{len(x)} rows")
    last = xs[-8:]
    for x in last:
        g(x)
    return f"{replays_in(lambda: [g(x) for x in last])} of 8 calls replayed afterwards"


def outputs_kept(backend: str) -> str:
    model, held, want = net(), [], []
    g = compiled(model, backend)
    for _ in range(10):
        x = torch.randn(4, 16, device="npu")
        held.append(g(x))
        want.append(model(x))
    for i, (h, w) in enumerate(zip(held, want, strict=True)):
        same(h, w, f"result {i} of 10 was changed by a later call")
    return "10 results held"


def random_ops(backend: str) -> str:
    f = lambda x: x * torch.rand_like(x)  # noqa: E731
    g, x, drawn = compiled(f, backend), torch.ones(64, device="npu"), []
    for i in range(8):
        torch.manual_seed(i)
        got = g(x).clone()
        torch.manual_seed(i)
        same(got, f(x), f"call {i} did not draw eager's numbers")
        drawn.append(got)
    if torch.equal(drawn[5], drawn[6]):
        raise Wrong("the same numbers at two calls")
    return "anew at each call, eager's numbers"


def weights_reloaded(backend: str) -> str:
    model, x = net(), torch.randn(4, 16, device="npu")
    g = compiled(model, backend)
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("load_state_dict", lambda: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})),
        (".data =", lambda: setattr(model[0].weight, "data", torch.randn(32, 16, device="npu"))),
        ("a new Parameter", lambda: setattr(model[0], "weight", nn.Parameter(torch.randn(32, 16, device="npu")))),
    ]
    for name, change in [("", lambda: None), *ways]:
        change()
        for _ in range(4):
            same(g(x).clone(), model(x), f"after {name}")
    return "load_state_dict, .data =, a new Parameter"


def cache_moved(backend: str) -> str:
    def step(cache: Tensor, x: Tensor, at: Tensor) -> Tensor:
        cache.index_copy_(0, at, x)
        return cache.sum(0)

    g = compiled(step, backend)
    cache, beside = (torch.zeros(64, 8, device="npu") for _ in range(2))
    for i in range(12):
        if i == 6:
            keep = cache  # noqa: F841  (the old memory stays taken)
            cache = cache.clone()
        x, at = torch.randn(1, 8, device="npu"), torch.tensor([i], device="npu")
        same(g(cache, x, at).clone(), step(beside, x, at), f"call {i}")
        same(cache, beside, f"the cache after call {i}")
    return "written in place before and after"


def another_stream(backend: str) -> str:
    model = net()
    g, streams = compiled(model, backend), [torch.npu.Stream() for _ in range(3)]
    x = torch.randn(4, 16, device="npu")
    for _ in range(4):
        g(x)
    got, want = [], []
    for i in range(12):
        with torch.npu.stream(streams[i % 3]):
            x = torch.randn(64, 16, device="npu")[i : i + 4]
            got.append(g(x).clone())
            want.append(model(x))
    torch.npu.synchronize()
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        same(a, b, f"call {i}")
    return "three streams in turns"


def out_of_memory(backend: str) -> str:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x] * 8, 1).sin().sum(1)

    model = Wide()
    g, x = compiled(model, backend), torch.randn(64, 4096, device="npu")
    want = model(x)
    same(g(x).clone(), want, "before")
    torch.npu.empty_cache()
    ascend_sim.fail_allocation(1)
    same(g(x).clone(), want, "the call whose capture had no memory")
    ascend_sim.fail_allocation(0)
    for _ in range(3):
        same(g(x).clone(), want, "afterwards")
    return "the call ran, later ones too"


def budget(backend: str) -> str:
    model = net()
    g = compiled(model, backend, dynamic=True)
    xs = [torch.randn(n, 16, device="npu") for n in range(2, 62)]
    for _ in range(3):
        for x in xs:
            same(g(x).clone(), model(x), f"{len(x)} rows")
    return f"{replays_in(lambda: [g(x) for x in xs])} of 60 sizes replayed, room for 60 graphs and streams"


def two_models(backend: str) -> str:
    models = [net(), net()]
    both = [compiled(m, backend) for m in models]
    x = torch.randn(4, 16, device="npu")
    for i in range(6):
        got = [g(x) for g in both]
        for number, (a, model) in enumerate(zip(got, models, strict=True)):
            same(a, model(x), f"model {number} at call {i}")
    return "in turns"


def memory(backend: str, sizes: Iterable[int]) -> str:
    """What the device's allocator holds more once graphs of these sizes are there."""

    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x * 2], 1).sin() * 3

    model = Wide()
    g = compiled(model, backend, dynamic=True)
    before = torch.npu.memory_reserved()
    for n in sizes:
        x = torch.randn(n, 4096, device="npu")
        for _ in range(4):
            same(g(x).clone(), model(x), f"{n} rows")
    del x
    torch.npu.synchronize()
    torch.npu.empty_cache()
    return f"{(torch.npu.memory_reserved() - before) / 2**20:.0f} MiB"


LARGEST = 640  # rows; of so many sizes up to it
COUNTS = (1, 2, 5, 10, 20)

ROWS: dict[str, Row] = {
    "100 shapes": hundred_shapes,
    "outputs kept across calls": outputs_kept,
    "random ops": random_ops,
    "weights reloaded": weights_reloaded,
    "key-value cache moved": cache_moved,
    "input on another stream": another_stream,
    "out of memory in a capture": out_of_memory,
    "budget of graphs used up": budget,
    "two models in one process": two_models,
    **{f"memory of {n} sizes": partial(memory, sizes=[LARGEST * (i + 1) // n for i in range(n)]) for n in COUNTS},
}
SETTINGS = {"budget of graphs used up": {"ASCEND_SIM_STREAMS": "60"}}


def run(row: str, backend: str) -> dict[str, str]:
    found = {"row": row, "backend": backend}
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return {**found, "came": "right", "note": ROWS[row](backend)}
    except Wrong as wrong:
        return {**found, "came": "wrong", "note": str(wrong)}
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return {**found, "came": "raised", "note": f"{type(error).__name__}: {text[0][:120]}"}


if __name__ == "__main__":
    tell(run(sys.argv[1], sys.argv[2]))
