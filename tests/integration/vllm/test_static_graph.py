"""The static-graph wrapper against vLLM's contract: its own forward context, batch descriptors and constructors."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("vllm", reason="make install-vllm installs it")

from vllm.compilation import backends, monitor
from vllm.compilation.base_static_graph import AbstractStaticGraphWrapper
from vllm.compilation.counter import compilation_counter
from vllm.compilation.cuda_graph import CUDAGraphOptions
from vllm.config import CompilationConfig, CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.sequence import IntermediateTensors

import graphmode
from graphmode.devices import adapter
from graphmode.devices.null import NullDevice, NullGraph
from graphmode.errors import CaptureError, FallbackError, OptionError, UnsupportedError
from graphmode.inspect.counters import ledger
from graphmode.integrations.vllm.static_graph import StaticGraphs, StaticGraphWrapper

NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL
FOUR, EIGHT, SIXTEEN = (BatchDescriptor(num_tokens=n) for n in (4, 8, 16))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    gc.collect()
    graphmode.reset()
    with torch.inference_mode():
        yield
    graphmode.reset()


@pytest.fixture
def null(monkeypatch: pytest.MonkeyPatch) -> NullDevice:
    device = NullDevice()
    monkeypatch.setitem(adapter._found, "null", device)
    return device


@functools.cache
def _plain() -> VllmConfig:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_USE_AOT_COMPILE", "0")  # our CPU platform sets it, which other tests must not see
        return VllmConfig()


def config(**options: Any) -> VllmConfig:
    """Options as an accelerator's platform finds them: ours of the CPU would hand them on by environment."""
    settings = copy.copy(_plain())
    settings.additional_config = {"graphmode": {"device": "null", **options}}
    return settings


class Counting:
    """A callable that knows how often it really ran."""

    def __init__(self, f: Callable[..., Any] = lambda x: x * 2 + 1) -> None:
        self.f, self.calls, self.colour = f, 0, "red"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.f(*args, **kwargs)


def call(wrapper: Any, mode: CUDAGraphMode, batch: BatchDescriptor | None, *args: Any, **kwargs: Any) -> Any:
    settings = wrapper.vllm_config
    with set_forward_context(None, settings, cudagraph_runtime_mode=mode, batch_descriptor=batch):
        return wrapper(*args, **kwargs)


def counts() -> tuple[int, int, int, int]:
    r = graphmode.report()
    return r.captures, r.replays, r.live_calls, r.graphs


def reasons() -> dict[str, int]:
    return {f.reason: f.count for f in graphmode.report().fallbacks}


# --- the contract ----------------------------------------------------------------------------------------------------


def test_it_has_vllm_s_signatures_and_is_its_wrapper() -> None:
    assert AbstractStaticGraphWrapper in StaticGraphWrapper.__mro__
    for name in ("__init__", "__call__"):
        theirs = list(inspect.signature(getattr(AbstractStaticGraphWrapper, name)).parameters)
        mine = list(inspect.signature(getattr(StaticGraphWrapper, name)).parameters)
        assert mine[: len(theirs) - 1] == theirs[:-1]


def test_vllm_constructs_it_for_a_piece(null: NullDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{StaticGraphWrapper.__module__}.{StaticGraphWrapper.__qualname__}"
    monkeypatch.setattr(type(backends.current_platform), "get_static_graph_wrapper_cls", classmethod(lambda cls: name))
    settings, piece = config(), Counting()
    compilation = CompilationConfig(cudagraph_mode=PIECEWISE, use_inductor_graph_partition=False)
    wrapper = backends.wrap_with_cudagraph_if_needed(piece, settings, compilation, True, False)
    assert type(wrapper) is StaticGraphWrapper and wrapper.runtime_mode is PIECEWISE
    x = torch.ones(4)
    for _ in range(3):
        call(wrapper, PIECEWISE, FOUR, x)
    assert counts() == (1, 2, 0, 1) and piece.calls == 1


def test_attributes_are_the_callable_s_and_unwrap_gives_the_innermost(null: NullDevice) -> None:
    inner = Counting()
    piece = StaticGraphWrapper(inner, config(), PIECEWISE)
    whole = StaticGraphWrapper(piece, config(), FULL)
    assert whole.colour == piece.colour == "red" and whole.runnable is piece
    assert whole.unwrap() is inner and whole.cudagraph_wrapper is whole
    assert not hasattr(whole, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = whole.no_such_thing
    assert copy.copy(piece).colour == "red"


def test_a_wrong_mode_option_or_device_is_refused_at_construction() -> None:
    for mode in (NONE, CUDAGraphMode.FULL_AND_PIECEWISE):
        with pytest.raises(ValueError, match="PIECEWISE or FULL"):
            StaticGraphWrapper(Counting(), config(), mode)
    with pytest.raises(OptionError, match="max_grphs"):
        StaticGraphWrapper(Counting(), config(max_grphs=1), FULL)
    with pytest.raises(UnsupportedError, match="no graph adapter"):
        StaticGraphWrapper(Counting(), config(device="abacus"), FULL)


# --- when it captures ------------------------------------------------------------------------------------------------


def test_none_and_another_mode_and_no_context_only_call(null: NullDevice) -> None:
    f = Counting()
    wrapper, x = StaticGraphWrapper(f, config(), PIECEWISE), torch.ones(4)
    wrapper(x)
    call(wrapper, NONE, FOUR, x)
    call(wrapper, FULL, FOUR, x)
    assert f.calls == 3 and null.calls == [] and counts() == (0, 0, 0, 0)


def test_each_descriptor_is_captured_once_and_replayed_from_then_on(null: NullDevice) -> None:
    f, before = Counting(), compilation_counter.num_cudagraph_captured
    wrapper = StaticGraphWrapper(f, config(), FULL)
    buffer = torch.ones(16)
    batches = [FOUR, EIGHT, replace(FOUR, uniform=True)]
    for _ in range(3):
        for batch in batches:
            call(wrapper, FULL, batch, buffer[: batch.num_tokens])
    assert f.calls == 3 and counts() == (3, 6, 0, 3) and reasons() == {}
    assert null.calls.count("capture_begin") == 3 and null.calls.count("replay") == 6
    assert compilation_counter.num_cudagraph_captured - before == 3


def test_nothing_is_captured_after_vllm_closed_capturing(null: NullDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = Counting(), torch.ones(4)
    wrapper = StaticGraphWrapper(f, config(), FULL)
    call(wrapper, FULL, FOUR, x)
    monkeypatch.setattr(monitor, "cudagraph_capturing_enabled", False)
    for batch in (FOUR, EIGHT):
        call(wrapper, FULL, batch, x)
    assert counts() == (1, 1, 1, 1) and f.calls == 2
    assert any("no capture now" in r for r in reasons())


def test_a_call_inside_another_capture_is_part_of_it(null: NullDevice) -> None:
    f, x = Counting(), torch.ones(4)
    inner = StaticGraphWrapper(f, config(), FULL)
    outer = StaticGraphWrapper(inner, config(), FULL)
    for _ in range(3):
        call(outer, FULL, FOUR, x)
    assert f.calls == 1 and counts() == (1, 2, 0, 1)


def test_eager_mode_captures_nothing(null: NullDevice) -> None:
    f = Counting()
    wrapper = StaticGraphWrapper(f, config(mode="eager"), FULL)
    for _ in range(3):
        call(wrapper, FULL, FOUR, torch.ones(4))
    assert f.calls == 3 and null.calls == []


def test_no_descriptor_runs_live_with_a_reason(null: NullDevice) -> None:
    f = Counting()
    call(StaticGraphWrapper(f, config(), FULL), FULL, None, torch.ones(4))
    assert f.calls == 1 and counts() == (0, 0, 1, 0) and any("no batch descriptor" in r for r in reasons())


# --- no replay with other inputs than the capture's ------------------------------------------------------------------


MOVES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "address": lambda: ((b := torch.ones(9))[:4], b[4:8]),
    "sizes": lambda: ((b := torch.ones(9))[:4], b[:3]),
    "strides": lambda: ((b := torch.ones(4, 4)), b.t()),
    "dtype": lambda: ((b := torch.ones(4)), b.view(torch.int32)),
    "value": lambda: (3, 4),
    "kind": lambda: (1, True),
    "in a list": lambda: ([(b := torch.ones(9))[:4]], [b[4:8]]),
    "of IntermediateTensors": lambda: (
        IntermediateTensors({"h": (b := torch.ones(9))[:4]}),
        IntermediateTensors({"h": b[4:8]}),
    ),
}


@pytest.mark.parametrize("by", ["position", "name"])
@pytest.mark.parametrize("what", MOVES)
def test_another_input_than_captured_runs_live_and_is_captured_where_it_stays(
    what: str, by: str, null: NullDevice
) -> None:
    f = Counting(lambda x: torch.ones(1))
    wrapper = StaticGraphWrapper(f, config(), FULL)
    first, second = MOVES[what]()

    def step(value: Any) -> None:
        given: Any = ((value,), {}) if by == "position" else ((), {"x": value})
        call(wrapper, FULL, FOUR, *given[0], **given[1])

    step(first)
    step(first)
    assert (f.calls, null.calls.count("replay")) == (1, 1)
    step(second)
    assert (f.calls, null.calls.count("replay")) == (2, 1), "a replay on other inputs than the capture's"
    (reason,) = reasons()
    assert f"input {'0' if by == 'position' else 'x'} " in reason
    step(first)
    assert (f.calls, null.calls.count("replay")) == (2, 2)
    step(second)
    step(second)  # it stays there
    step(second)
    assert (f.calls, null.calls.count("replay"), null.calls.count("capture_begin")) == (4, 3, 2)
    assert graphmode.report().evictions == 1


@pytest.mark.parametrize(
    "move",
    [
        lambda net: setattr(net.weight, "data", torch.ones(4, 4)),
        lambda net: setattr(net.weight, "data", net.weight.data.t()),
        lambda net: setattr(net, "weight", nn.Parameter(torch.ones(4, 4), requires_grad=False)),
        lambda net: setattr(net, "weight", None) if net.bias is None else setattr(net, "bias", None),
    ],
)
def test_a_moved_weight_of_the_model_is_no_silent_replay(move: Callable[[Any], None], null: NullDevice) -> None:
    net, x = nn.Linear(4, 4).requires_grad_(False), torch.ones(2, 4)
    wrapper = StaticGraphWrapper(net, config(), FULL)
    call(wrapper, FULL, FOUR, x)
    call(wrapper, FULL, FOUR, x)
    move(net)
    assert torch.equal(call(wrapper, FULL, FOUR, x), net(x))
    assert counts() == (1, 1, 1, 1) and any("weight" in r for r in reasons())


def test_another_mode_of_torch_is_no_silent_replay(null: NullDevice) -> None:
    f, x = Counting(), torch.ones(4)
    wrapper = StaticGraphWrapper(f, config(), FULL)
    call(wrapper, FULL, FOUR, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call(wrapper, FULL, FOUR, x)
    assert f.calls == 2 and any("mode of torch" in r for r in reasons())


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), object()], ids=["sparse", "object"])
def test_what_can_t_be_compared_is_never_captured(value: Any, null: NullDevice) -> None:
    f = Counting(lambda x: None)
    wrapper = StaticGraphWrapper(f, config(), FULL)
    for _ in range(3):
        call(wrapper, FULL, FOUR, value)
    assert f.calls == 3 and null.calls == [] and counts()[2] == 3 and len(reasons()) == 1


# --- refusals, errors, caps ------------------------------------------------------------------------------------------


def test_a_refused_capture_runs_live_with_its_reason(null: NullDevice) -> None:
    null.refuse = ["a call this device can't record"]
    f, x = Counting(), torch.ones(4)
    wrapper = StaticGraphWrapper(f, config(), FULL)
    for _ in range(3):
        assert torch.equal(call(wrapper, FULL, FOUR, x), x * 2 + 1)
    assert f.calls == 3 and null.calls.count("capture_begin") == 1 and counts() == (0, 0, 3, 0)
    assert reasons() == {"a call this device can't record": 3}
    call(wrapper, FULL, EIGHT, x)
    assert counts() == (1, 0, 3, 1)
    wrapper.clear_graphs()
    call(wrapper, FULL, FOUR, x)
    assert counts()[0] == 2


def test_require_makes_an_error_of_it(null: NullDevice) -> None:
    null.refuse = ["not this one"]
    wrapper, b = StaticGraphWrapper(Counting(), config(require=True), FULL), torch.ones(9)
    for _ in range(2):
        with pytest.raises(FallbackError, match="not this one"):
            call(wrapper, FULL, FOUR, b[:4])
    call(wrapper, FULL, EIGHT, b[:4])
    with pytest.raises(FallbackError, match="input 0"):
        call(wrapper, FULL, EIGHT, b[4:8])
    assert counts() == (1, 0, 0, 1)


@pytest.mark.parametrize("device", ["null", "cpu"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_a_capture_is_the_caller_s_and_leaves_everything_usable(
    device: str, error: type[BaseException], null: NullDevice
) -> None:
    fails, x = [error("mine")], torch.ones(4)

    def f(x: Tensor) -> Tensor:
        y = x + 1
        if fails:
            raise fails.pop()
        return y

    wrapper = StaticGraphWrapper(f, config(device=device), FULL)
    with pytest.raises(error, match="mine"):
        call(wrapper, FULL, FOUR, x)
    assert gc.isenabled() and not adapter.device_named(device).is_capturing() and counts() == (0, 0, 0, 0)
    for _ in range(3):
        assert torch.equal(call(wrapper, FULL, FOUR, x), x + 1)
    assert counts() == (1, 2, 0, 1) and reasons() == {}


def test_a_failed_replay_raises_and_is_captured_anew(null: NullDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = Counting(), torch.ones(4)
    wrapper = StaticGraphWrapper(f, config(), FULL)
    call(wrapper, FULL, FOUR, x)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="device is gone"):
        patched.setattr(NullGraph, "replay", lambda *_: (_ for _ in ()).throw(OSError("device is gone")))
        call(wrapper, FULL, FOUR, x)
    call(wrapper, FULL, FOUR, x)
    assert f.calls == 2 and counts() == (2, 0, 0, 1)


def test_the_least_recently_used_graph_goes(null: NullDevice) -> None:
    f, x = Counting(), torch.ones(4)
    wrapper = StaticGraphWrapper(f, config(max_graphs=2), FULL)
    for batch in (FOUR, EIGHT, FOUR, SIXTEEN):  # EIGHT goes
        call(wrapper, FULL, batch, x)
    assert counts() == (3, 1, 0, 2) and graphmode.report().evictions == 1 and null.calls.count("reset") == 1
    call(wrapper, FULL, FOUR, x)
    assert f.calls == 3
    call(wrapper, FULL, EIGHT, x)
    assert f.calls == 4


def test_no_room_for_any_graph_and_a_graph_over_the_byte_cap_run_live(null: NullDevice) -> None:
    x = torch.ones(4)
    null.bytes_per_graph = 2000
    for options in ({"max_graphs": 0}, {"max_bytes": 1000}):
        f = Counting()
        wrapper = StaticGraphWrapper(f, config(**options), FULL)
        for _ in range(3):
            assert torch.equal(call(wrapper, FULL, FOUR, x), x * 2 + 1)
        assert f.calls == 3
    assert counts() == (0, 0, 6, 0)
    assert all("max_graphs" in r or "max_bytes" in r for r in reasons())


def test_clear_and_reset_give_graphs_back_and_death_keeps_the_counts(null: NullDevice) -> None:
    x, wrappers = torch.ones(4), [StaticGraphWrapper(Counting(), config(), mode) for mode in (FULL, PIECEWISE)]
    for wrapper in wrappers:
        for _ in range(2):
            call(wrapper, wrapper.runtime_mode, FOUR, x)
    assert counts() == (2, 2, 0, 2)
    StaticGraphWrapper.clear_all_graphs()
    assert counts() == (2, 2, 0, 0) and null.calls.count("reset") == 2
    for wrapper in wrappers:
        call(wrapper, wrapper.runtime_mode, FOUR, x)
    assert counts() == (4, 2, 0, 2)
    del wrapper, wrappers
    gc.collect()
    assert counts() == (4, 2, 0, 0)
    graphmode.reset()
    assert counts() == (0, 0, 0, 0)


def test_a_wrapper_that_reset_zeroed_goes_on(null: NullDevice) -> None:
    wrapper, x = StaticGraphWrapper(Counting(), config(), FULL), torch.ones(4)
    call(wrapper, FULL, FOUR, x)
    graphmode.reset()
    for _ in range(3):
        call(wrapper, FULL, FOUR, x)
    assert counts() == (1, 2, 0, 1)
    assert sum(isinstance(r, StaticGraphs) for r in ledger.regions()) == 1


# --- devices that only record ----------------------------------------------------------------------------------------


class RecordingGraph(NullGraph):
    """One that met something it can't record, if the callable raised an OSError."""

    def refusal(self) -> bool:
        return True


class RecordingDevice(NullDevice):
    capabilities = replace(NullDevice.capabilities, capture_executes=False)

    def graph(self) -> NullGraph:
        return RecordingGraph(self)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> RecordingDevice:
    device = RecordingDevice()
    monkeypatch.setitem(adapter._found, "null", device)
    return device


def test_what_was_only_recorded_is_replayed_for_the_same_call(recording: RecordingDevice) -> None:
    wrapper, x = StaticGraphWrapper(Counting(), config(), FULL), torch.ones(4)
    call(wrapper, FULL, FOUR, x)
    assert recording.calls == ["capture_begin", "capture_end", "instantiate", "replay"]


def test_what_the_device_refuses_half_way_runs_live(recording: RecordingDevice) -> None:
    x = torch.ones(4)

    def f(x: Tensor) -> Tensor:
        if recording.is_capturing():
            raise OSError("operation not permitted while a stream is captured")
        return x + 1

    wrapper = StaticGraphWrapper(f, config(), FULL)
    for _ in range(2):
        assert torch.equal(call(wrapper, FULL, FOUR, x), x + 1)
    assert counts() == (0, 0, 2, 0) and any("not permitted" in r for r in reasons())


@pytest.mark.parametrize("last", [True, False])
def test_results_in_the_device_s_pool_are_not_held(
    last: bool, recording: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weak(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        bare = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), t.device, storage.nbytes())
        return torch.empty(0, dtype=t.dtype).set_(bare, t.storage_offset(), t.shape, t.stride())

    monkeypatch.setattr(torch.ops._C, "weak_ref_tensor", weak, raising=False)
    pool: list[Tensor] = []

    def f(x: Tensor) -> IntermediateTensors:
        pool.append(x + 1)
        return IntermediateTensors({"h": pool[-1], "n": pool[-1][:2]})

    options = CUDAGraphOptions(weak_ref_output=last)
    wrapper, x = StaticGraphWrapper(f, config(), PIECEWISE, options), torch.ones(4)
    first = call(wrapper, PIECEWISE, FOUR, x)
    own = first["h"].untyped_storage()._cdata == pool[0].untyped_storage()._cdata
    assert own is not last  # a piece that others follow keeps its memory until they are captured
    again = call(wrapper, PIECEWISE, FOUR, x)
    assert isinstance(again, IntermediateTensors) and again["h"].data_ptr() == pool[0].data_ptr()
    assert torch.equal(again["n"], pool[0][:2])
    storage = weakref.ref(pool.pop())
    del first
    assert storage() is None


# --- real values: the CPU's graph ------------------------------------------------------------------------------------


def on_cpu(f: Callable[..., Any], mode: CUDAGraphMode = FULL, **options: Any) -> StaticGraphWrapper:
    return StaticGraphWrapper(f, config(device="cpu", poison=True, **options), mode)


def test_a_replay_computes_on_the_values_of_now_in_nested_results() -> None:
    cache, x = torch.zeros(3, 4), torch.zeros(4)

    def f(x: Tensor, at: int, *, intermediate_tensors: IntermediateTensors) -> Any:
        h = intermediate_tensors["h"]
        cache[at].add_(x)
        y = torch.exp(x) + h
        return {"h": IntermediateTensors({"y": y, "row": y[1:3]}), "aux": [x, (cache.sum(0), None)]}

    wrapper, h = on_cpu(f), torch.ones(4)
    outer = IntermediateTensors({"h": h})
    plain = torch.zeros(3, 4)
    for i in range(5):
        x.fill_(i)
        h.fill_(-i)
        got = call(wrapper, FULL, FOUR, x, 1, intermediate_tensors=outer)
        plain[1] += x
        y = torch.exp(x) + h
        assert torch.equal(got["h"]["y"], y) and torch.equal(got["h"]["row"], y[1:3])
        assert got["aux"][0].data_ptr() == x.data_ptr() and torch.equal(got["aux"][1][0], plain.sum(0))
        assert got["aux"][1][1] is None and torch.equal(cache, plain)
        got["aux"].clear()  # the caller's own containers
    assert counts() == (1, 4, 0, 1) and reasons() == {}


def test_a_moved_input_is_computed_on_as_it_is() -> None:
    wrapper, b = on_cpu(lambda x: torch.exp(x)), torch.arange(32.0)
    for at in (0, 0, 8, 0, 16, 8, 24, 24, 24):  # captured, replayed, live, replayed, live three times, again, replayed
        x = b[at : at + 8]
        assert torch.equal(call(wrapper, FULL, EIGHT, x), torch.exp(x))
    assert counts() == (2, 3, 4, 1)


READS: dict[str, Callable[[Tensor], Any]] = {"reads a value": lambda t: t.item(), "tolist()": lambda t: t.tolist()}


@pytest.mark.parametrize("why", READS)
def test_a_value_read_on_the_host_is_refused_after_its_effects_happened_once(why: str) -> None:
    seen, x = torch.zeros(1), torch.ones(4)

    def f(x: Tensor) -> Tensor:
        seen.add_(1)
        return x * READS[why](x.sum())

    wrapper = on_cpu(f)
    for i in range(1, 5):
        x.fill_(i)
        assert torch.equal(call(wrapper, FULL, FOUR, x), x * x.sum())
        assert seen.item() == i
    assert counts() == (0, 0, 4, 0) and any(why in r for r in reasons())


def test_full_outside_piecewise_as_vllm_nests_them() -> None:
    runs: list[str] = []

    def first(x: Tensor) -> Tensor:
        runs.append("first")
        return torch.exp(x)

    def second(h: Tensor) -> Tensor:
        runs.append("second")
        return h * 2 + 1

    out = torch.empty(4)  # what vLLM's attention writes between two pieces lies at a place of its own
    pieces = [on_cpu(first, PIECEWISE), on_cpu(second, PIECEWISE)]

    def model(x: Tensor) -> Tensor:
        out.copy_(pieces[0](x).cumsum(0))
        return pieces[1](out)

    whole, x = on_cpu(model, FULL), torch.ones(4)
    decode, mixed = BatchDescriptor(4, 4, True), FOUR
    for i, (mode, batch) in enumerate([(NONE, None), *[(FULL, decode), (PIECEWISE, mixed)] * 3, (NONE, None)]):
        x.fill_(i)
        assert torch.equal(call(whole, mode, batch, x), torch.exp(x).cumsum(0) * 2 + 1), mode
    # Live: both NONE calls. Captured: the pieces as part of FULL's graph, and each by itself.
    assert runs == ["first", "second"] * 4 and counts() == (3, 2 + 2 * 2, 0, 3) and reasons() == {}


def test_wrappers_share_the_device_s_memory_for_intermediates() -> None:
    def f(x: Tensor) -> Tensor:
        return ((x.exp() + 1).sin() * 2).sum()

    wrappers, x = [on_cpu(f, PIECEWISE) for _ in range(4)], torch.ones(4096)
    held = []
    for wrapper in wrappers:
        for _ in range(2):
            assert torch.equal(call(wrapper, PIECEWISE, FOUR, x), f(x))
        held.append(graphmode.report().bytes.arena)
    assert counts() == (4, 4, 0, 4) and held[0] == held[-1] > 0


def test_gradients_are_never_lost_in_a_replay() -> None:
    net, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(2, 4)
        net = nn.Linear(4, 4)
        wrapper = on_cpu(net)
        for i in range(1, 4):
            call(wrapper, FULL, FOUR, x).sum().backward()
            assert net.bias.grad is not None and torch.equal(net.bias.grad, torch.full((4,), 2.0 * i))
    assert counts()[:2] == (0, 0) and any("gradients" in r for r in reasons())


def test_a_capture_error_of_the_callable_s_own_device_has_a_line() -> None:
    def f(x: Tensor) -> Tensor:
        return x[x > 0].exp()

    wrapper, x = on_cpu(f), torch.ones(4)
    for i in range(4):
        x[:i] = -1
        assert torch.equal(call(wrapper, FULL, FOUR, x), torch.exp(torch.ones(4 - i)))
    (fallback,) = graphmode.report().fallbacks
    assert fallback.count == 4 and "test_static_graph.py" in str(fallback.line)


def test_a_refusal_is_no_error_of_the_caller_s() -> None:
    with pytest.raises(CaptureError, match="mine"):  # an error of that class which the callable raises is its own

        def f(x: Tensor) -> Tensor:
            raise CaptureError("mine")

        call(on_cpu(f), FULL, FOUR, torch.ones(4))
