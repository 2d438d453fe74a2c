"""Streams run on their own; events order them; an error of a task comes with the next synchronisation."""

from __future__ import annotations

import time

import ascend_sim
import pytest
import torch


def test_the_host_does_not_wait_for_the_device() -> None:
    x = torch.randn(1500, 1500, device="npu")
    torch.npu.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        x = x @ x.clamp(-1, 1) * 1e-3
    launched = time.perf_counter() - start
    assert not torch.npu.current_stream().query()
    torch.npu.synchronize()
    assert launched < (time.perf_counter() - start) / 2


def test_a_stream_waits_for_an_event_of_another() -> None:
    side = torch.npu.Stream()
    for _ in range(20):
        x = torch.randn(400, 400, device="npu")
        y = x @ x
        event = torch.npu.Event()
        event.record()
        with torch.npu.stream(side):
            event.wait()
            z = y + 1
        side.synchronize()
        assert torch.equal(z.cpu(), x.cpu() @ x.cpu() + 1)


def test_events_measure_virtual_time() -> None:
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    x = torch.ones(1024, device="npu")
    start.record()
    for _ in range(10):
        x = x + 1
    end.record()
    torch.npu.synchronize()
    assert 0.02 < start.elapsed_time(end) < 1.0  # ten tasks of some microseconds each


def test_an_error_of_a_task_is_raised_at_the_next_synchronisation_once() -> None:
    table = torch.ones(3, 2, device="npu")
    torch.nn.functional.embedding(torch.tensor([7], device="npu"), table)
    with pytest.raises(RuntimeError, match="507015") as raised:
        torch.npu.synchronize()
    assert "out of range" in str(raised.value)
    assert (table + 1).sum().item() == 12


def test_a_task_fails_when_it_is_told_to() -> None:
    ascend_sim.fail_task("aten::exp", 2)
    x = torch.ones(3, device="npu").exp()
    torch.npu.synchronize()
    x.exp()
    with pytest.raises(RuntimeError, match=r"aten::exp failed"):
        torch.npu.synchronize()


def test_the_time_line_has_every_task_in_order() -> None:
    x = torch.ones(8, device="npu")
    torch.npu.synchronize()
    with ascend_sim.timeline() as line:
        x.exp().sin()
        torch.npu.synchronize()
    names = [e["name"] for e in line.events()]
    assert names.index("aten::exp") < names.index("aten::sin")
    assert all(e["dur"] >= 0 for e in line.events())


def test_calls_are_counted_by_the_name_of_the_function() -> None:
    x = torch.ones(8, device="npu")
    torch.npu.synchronize()
    before = ascend_sim.calls()
    x.exp()
    torch.npu.synchronize()
    assert ascend_sim.calls()["aclrtLaunchKernel"] - before["aclrtLaunchKernel"] == 1
