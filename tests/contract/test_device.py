"""One contract for every device adapter: the CPU's graph and the null device's keep the same states and errors."""

from __future__ import annotations

import pytest
import torch

from graphmode.devices.adapter import Device, DeviceGraph, device_named
from graphmode.errors import StateError, UnsupportedError

from .ways import assert_same

pytestmark = pytest.mark.cpu("it captures on the CPU's graph by name")


@pytest.fixture(params=["cpu", "null"])
def device(request: pytest.FixtureRequest) -> Device:
    return device_named(request.param)


def captured(device: Device, x: torch.Tensor) -> tuple[DeviceGraph, torch.Tensor]:
    graph = device.graph()
    graph.capture_begin([x], lambda: "", [])
    y = torch.exp(x) + 1
    graph.capture_end([y])
    return graph, y


def test_a_graph_gives_outputs_like_those_of_its_capture(device: Device) -> None:
    x = torch.ones(3)
    graph, y = captured(device, x)
    graph.instantiate(poison=True)
    (got,) = graph.replay([x])
    assert got.shape == y.shape and got.dtype == y.dtype
    assert not device.capabilities.fresh_outputs or got.data_ptr() != y.data_ptr()


def test_bytes_are_known_before_anything_is_instantiated(device: Device) -> None:
    graph, _ = captured(device, torch.ones(64, 64))
    known = graph.bytes()
    assert known.arena >= 0 and known.outputs >= 0 and known.fixed >= 0
    graph.instantiate(poison=False)
    assert graph.bytes() == known


def test_inputs_are_re_bound_where_the_device_says_so() -> None:
    cpu = device_named("cpu")
    assert cpu.capabilities.rebind_inputs and cpu.capabilities.capture_executes
    graph, _ = captured(cpu, torch.ones(3))
    graph.instantiate(poison=True)
    for x in (torch.zeros(3), torch.randn(3)):
        assert_same(graph.replay([x]), [torch.exp(x) + 1])


def test_wrong_order_is_a_state_error(device: Device) -> None:
    graph = device.graph()
    for call in (lambda: graph.capture_end([]), lambda: graph.instantiate(poison=False), lambda: graph.replay([])):
        with pytest.raises(StateError):
            call()
    graph, _ = captured(device, torch.ones(3))
    with pytest.raises(StateError, match="reset"):
        graph.capture_begin([], lambda: "", None)


def test_one_capture_at_a_time(device: Device) -> None:
    outer, inner = device.graph(), device.graph()
    outer.capture_begin([], lambda: "", None)
    assert device.is_capturing()
    with pytest.raises(StateError, match="already open"):
        inner.capture_begin([], lambda: "", None)
    outer.reset()
    assert not device.is_capturing()


def test_after_reset_a_graph_is_empty_and_can_capture_again(device: Device) -> None:
    x = torch.ones(3)
    graph, _ = captured(device, x)
    graph.instantiate(poison=False)
    graph.reset()
    with pytest.raises(StateError):
        graph.replay([x])
    graph.capture_begin([x], lambda: "", [])
    y = x * 3
    graph.capture_end([y])
    graph.instantiate(poison=False)
    assert graph.replay([x])[0].shape == y.shape
    assert isinstance(graph.debug_dump(), str)


def test_an_adapter_nobody_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(UnsupportedError, match=r"cpu.*null"):
        device_named("quantum")
