"""Memory of graphs on an NPU: one pool that is as large as the largest graph needs, and nothing besides."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import graphmode
from graphmode.devices.adapter import device_named
from tests.contract.ways import assert_same, counted, reasons

SIZES = [64 * n for n in range(1, 11)]


class Wide(nn.Module):
    """Intermediates, an input and a result of several MiB, and weights of none."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([x, x * 2], 1).sin()
        return y * 3, y.sum(1)


def pool_after(sizes: Sequence[int]) -> int:
    torch._dynamo.reset()
    graphmode.reset()
    gc.collect()
    model = Wide()
    torch._dynamo.mark_dynamic(x := torch.randn(sizes[0], 4096, device="npu"), 0)
    g = torch.compile(model, backend="graphmode", options={"max_graphs": 64})
    for n in sizes:
        x = x if n == sizes[0] else torch.randn(n, 4096, device="npu")
        for _ in range(3):
            assert_same(g(x), model(x))
    for n in sizes:  # all of them still replay, each over the memory of the others
        x = torch.randn(n, 4096, device="npu")
        assert_same(g(x), model(x))
    assert graphmode.report().graphs == len(sizes)
    return device_named("npu").pool_bytes()


@pytest.mark.parametrize("order", [sorted, lambda s: sorted(s, reverse=True), lambda s: s[1::2] + s[::2]])
def test_ten_sizes_take_the_memory_of_the_largest(order: Callable[[list[int]], list[int]]) -> None:
    alone = pool_after([max(SIZES)])
    together = pool_after(order(SIZES))
    assert alone > 0 and together <= 1.1 * alone


def test_the_pool_goes_back_when_the_last_graph_goes() -> None:
    before = torch.npu.memory_reserved()
    model = Wide()
    g = torch.compile(model, backend="graphmode")
    x = torch.randn(512, 4096, device="npu")
    for _ in range(4):
        g(x)
    held = torch.npu.memory_reserved()
    assert held >= before + device_named("npu").pool_bytes() > before
    del g, x
    torch._dynamo.reset()
    graphmode.reset()
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() <= before and device_named("npu").pool_bytes() == 0


def test_captures_that_fail_leave_nothing_behind() -> None:
    def looks_at_the_host(x: Tensor) -> Tensor:
        return torch.mvlgamma(x.abs() + 3, 2)  # the device's op waits for a value

    f = torch.compile(looks_at_the_host, backend="graphmode", dynamic=False)
    before = torch.npu.memory_reserved()
    for n in range(1, 81):  # more than there are ranges of addresses as long as the device's memory
        if n % 8 == 1:
            torch._dynamo.reset()  # it compiles eight sizes of a function at most
        x = torch.rand(n, device="npu")
        for _ in range(3):
            assert_same(f(x), looks_at_the_host(x))
    assert len(reasons()) > 0 and graphmode.report().captures == 0
    gc.collect()
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() <= before + 2**21
    g = torch.compile(Wide(), backend="graphmode")
    x = torch.randn(8, 4096, device="npu")
    for _ in range(3):
        assert_same(g(x), Wide()(x))
    assert graphmode.report().replays == 1


def test_the_user_s_allocator_settings_stay() -> None:
    from graphmode import _C

    g, x = torch.compile(Wide(), backend="graphmode"), torch.randn(8, 64, device="npu")
    for setting in (False, True, False):
        torch.npu.memory._set_allocator_settings(f"expandable_segments:{setting}")
        torch._dynamo.reset()
        for _ in range(3):
            g(x)
        assert _C.expandable_segments() == setting


def test_a_result_that_is_a_weight_is_not_kept_by_its_graph() -> None:
    model = nn.Linear(8, 8).npu()
    g, x = (
        torch.compile(lambda x: (model(x), model.weight.detach()), backend="graphmode"),
        torch.ones(2, 8, device="npu"),
    )
    for _ in range(4):
        assert g(x)[1].data_ptr() == model.weight.data_ptr()
    gone = weakref.ref(model.weight)
    model.weight = nn.Parameter(torch.randn(8, 8, device="npu"))
    gc.collect()
    assert gone() is None
    for _ in range(4):
        assert g(x)[1].data_ptr() == model.weight.data_ptr()


def test_garbage_in_the_memory_of_results_changes_nothing() -> None:
    model = Wide()
    g = torch.compile(model, backend="graphmode", options={"poison": True})
    for _ in range(5):
        x = torch.randn(4, 64, device="npu")
        assert_same(g(x), model(x))


def test_a_second_device_has_graphs_of_its_own() -> None:
    if torch.npu.device_count() < 2:
        pytest.skip("one device")
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU()).to("npu:1")
    g = torch.compile(model, backend="graphmode")
    with counted() as since:
        for _ in range(5):
            x = torch.randn(4, 16, device="npu:1")  # the current device is another
            assert_same(g(x), model(x))
    assert since.captures == 1 and since.replays == 3, reasons()
    assert torch.npu.current_device() == 0


def test_inputs_on_two_devices_are_no_graph_and_say_so() -> None:
    if torch.npu.device_count() < 2:
        pytest.skip("one device")
    g = torch.compile(lambda a, b: (a + 1, b + 1), backend="graphmode")
    for i in range(5):
        a, b = torch.full((3,), float(i), device="npu:0"), torch.full((3,), float(i), device="npu:1")
        assert_same(g(a, b), (a + 1, b + 1))
    assert any("a graph is of one device" in reason for reason in reasons())


def test_a_program_that_goes_to_another_device_and_back() -> None:
    """A graph is of one device: what runs on the other runs live, and says so."""
    if torch.npu.device_count() < 2:
        pytest.skip("one device")

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        there = torch.exp(x).to("npu:1") * 2
        return there, there.to("npu:0") + x

    g, held, want = torch.compile(f, backend="graphmode"), [], []
    for _ in range(6):
        x = torch.randn(64, device="npu:0")
        held.append(g(x))
        want.append(f(x))
    assert_same(held, want)
    assert any("a graph is of one device" in reason for reason in reasons()), reasons()
