"""Graphs: kept and not run, replayed, joined over streams, updated; what may not be done meanwhile is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ascend_sim
import pytest
import torch

from .alone import run


def test_a_capture_runs_nothing_and_a_replay_everything() -> None:
    x = torch.zeros(4, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x.add_(1)
    torch.npu.synchronize()
    assert x.sum().item() == 0
    for i in range(3):
        graph.replay()
        assert x.sum().item() == 4 * (i + 1)


def test_streams_that_join_by_events_belong_to_the_graph() -> None:
    x, side = torch.randn(16, 16, device="npu"), torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            a = x.exp()
        b = x.sin()
        torch.npu.current_stream().wait_stream(side)
        y = a + b
    slots = ascend_sim.usage().graph_slots
    graph.replay()
    assert torch.equal(y.cpu(), x.cpu().exp() + x.cpu().sin())
    del graph, a, b, y
    assert slots - ascend_sim.usage().graph_slots == 2


def test_a_stream_that_was_not_joined_again_is_an_error() -> None:
    x, side = torch.ones(4, device="npu"), torch.npu.Stream()
    with pytest.raises(RuntimeError, match="107025"), torch.npu.graph(torch.npu.NPUGraph()):
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            x.exp()
    assert x.exp().sum().item() > 10  # the device goes on


@pytest.mark.parametrize(
    "what, code",
    [
        (lambda x: torch.npu.current_stream().synchronize(), "107027"),
        (lambda x: torch.npu.synchronize(), "107030"),
        (lambda x: x.cpu(), "10702|10703"),
        (lambda x: x.item(), "10702|10703"),
        (lambda x: torch.npu.current_stream().query(), "107027"),
    ],
    ids=["stream", "device", "copy to the host", "a value", "query"],
)
def test_what_waits_for_the_device_is_refused(what: object, code: str) -> None:
    x = torch.ones(1, device="npu")
    with pytest.raises(RuntimeError, match="507903") as raised, torch.npu.graph(torch.npu.NPUGraph()):
        y = x + 1
        what(y)  # type: ignore[operator]
    assert re.search(code, str(raised.value.__context__))  # the end of the capture says that it is invalid
    assert (x + 1).item() == 2


def test_a_result_whose_size_depends_on_values_is_refused_by_name() -> None:
    x = torch.ones(4, device="npu")
    with pytest.raises(RuntimeError, match="nonzero can't be captured"), torch.npu.graph(torch.npu.NPUGraph()):
        x.nonzero()
    assert x.nonzero().shape == (4, 1)


def test_replays_draw_new_numbers_and_seeds_repeat_them() -> None:
    graph = torch.npu.NPUGraph()
    torch.npu.manual_seed(7)
    with torch.npu.graph(graph):
        x = torch.rand(4, device="npu")
    drawn = []
    for seed in (1, 1):
        torch.npu.manual_seed(seed)
        for _ in range(3):
            graph.replay()
            drawn.append(x.cpu())
    assert torch.equal(torch.stack(drawn[:3]), torch.stack(drawn[3:]))
    assert not torch.equal(drawn[0], drawn[1])


def test_memory_that_is_gone_is_noticed_and_not_read() -> None:
    weight = torch.ones(2**21, device="npu")
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = weight.sum()  # noqa: F841
    del weight
    torch.npu.empty_cache()
    graph.replay()
    with pytest.raises(RuntimeError, match="stale address"):
        torch.npu.synchronize()


def test_streams_and_graphs_share_a_budget() -> None:
    program = """
import torch
x, graphs = torch.ones(4, device="npu"), []
try:
    while len(graphs) < 100:
        g = torch.npu.NPUGraph()
        with torch.npu.graph(g):
            x.add_(1)
        graphs.append(g)
except RuntimeError as error:
    print(len(graphs), "207008" in str(error), "Alloc sq cq fail" in str(error))
graphs[0].replay(); print(x.sum().item())
del g; graphs.pop()
g = torch.npu.NPUGraph()
with torch.npu.graph(g):
    x.add_(1)
g.replay(); print(x.sum().item())
"""
    done = run(program, streams=60)
    lines = done.stdout.splitlines()
    assert lines[0].split()[1:] == ["True", "True"] and 0 < int(lines[0].split()[0]) < 60, done.stderr
    assert lines[1:] == ["8.0", "12.0"]


def test_tasks_of_a_group_are_updated_while_the_graph_waits_for_it() -> None:
    x, y = torch.ones(4, device="npu"), torch.zeros(4, device="npu")
    update, event = torch.npu.Stream(), torch.npu.ExternalEvent()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        event.wait(stream)
        event.reset(stream)
        torch.npu.graph_task_group_begin(stream)
        torch.mul(x, 2, out=y)
        handle = torch.npu.graph_task_group_end(stream)
    for factor in (3, 5):
        graph.replay()
        with torch.npu.stream(update):
            torch.npu.graph_task_update_begin(update, handle)
            torch.mul(x, factor, out=y)
            torch.npu.graph_task_update_end(update)
            event.record(update)
        torch.npu.synchronize()
        assert y.sum().item() == 4 * factor


def test_an_update_by_another_op_is_refused() -> None:
    x, y = torch.ones(4, device="npu"), torch.zeros(4, device="npu")
    update, graph = torch.npu.Stream(), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.mul(x, 2, out=y)
        handle = torch.npu.graph_task_group_end(stream)
    with torch.npu.stream(update), pytest.raises(RuntimeError, match="207019"):
        torch.npu.graph_task_update_begin(update, handle)
        torch.add(x, 2, out=y)
        torch.npu.graph_task_update_end(update)


def test_an_empty_graph_is_a_graph() -> None:
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        pass
    graph.replay()
    torch.npu.synchronize()


def test_a_graph_is_dumped_task_by_task(tmp_path: Path) -> None:
    x, graph = torch.ones(4, device="npu"), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x.exp().sin()
    graph.debug_dump(str(tmp_path / "graph.json"))
    names = [e["name"] for e in json.loads((tmp_path / "graph.json").read_text())]
    assert names == ["aten::exp", "aten::sin"]


def test_torch_accelerator_s_graph_is_the_same() -> None:
    x, stream, graph = torch.zeros(4, device="npu"), torch.Stream("npu"), torch.accelerator.Graph()
    with stream, graph:
        x.add_(1)
    graph.replay()
    graph.replay()
    torch.npu.synchronize()
    assert x.sum().item() == 8
