"""A device without a stream left for another graph: that size runs live, the others go on, and it is said once."""

from __future__ import annotations

import os
import subprocess
import sys

from ascend_sim import runtime

PROGRAM = """
import torch, graphmode, ascend_sim
model = torch.nn.Linear(8, 8).npu()
torch._dynamo.mark_dynamic(first := torch.randn(2, 8, device="npu"), 0)
g = torch.compile(model, backend="graphmode", options={"max_graphs": 100})
with torch.no_grad():
    for n in [*range(2, 40), *range(2, 40)]:
        x = first if n == 2 else torch.randn(n, 8, device="npu")
        for _ in range(2):
            assert torch.equal(g(x), model(x)), n
report = graphmode.report()
torch._dynamo.reset(); graphmode.reset()
del g
other = torch.nn.Linear(8, 4).npu()
h = torch.compile(other, backend="graphmode")
with torch.no_grad():
    for _ in range(4):
        assert torch.equal(h(x), other(x))
assert graphmode.report().replays >= 2, graphmode.report()  # there is room again
print(report.graphs, report.replays > 20, [f.reason for f in report.fallbacks if "stream" in f.reason])
"""


def test_graphs_beyond_the_budget_run_live_and_the_rest_is_kept() -> None:
    settings = {"ASCEND_SIM": "1", "ASCEND_SIM_STREAMS": "60", "LD_LIBRARY_PATH": str(runtime.FOLDER)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    graphs, replayed, said = done.stdout.split(maxsplit=2)
    assert 5 < int(graphs) < 38 and replayed == "True"
    assert said.count("no stream left for another graph") == 1
