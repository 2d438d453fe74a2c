"""Raw graphs, trap by trap: the numbers are those of the notes on capture at the dispatcher."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphmode import Graph
from graphmode.errors import CaptureError, StateError

from .ways import assert_same

pytestmark = pytest.mark.cpu("it captures on the CPU's graph by name")

F = torch.nn.functional
Body = Callable[[Tensor], object]


def refused(body: Body, x: Tensor, says: str | None = None) -> None:
    """The capture is refused where the call stands; the error names the user's line; nothing stays open."""
    graph = Graph()
    with pytest.raises(CaptureError, match=says) as caught, graph:
        body(x)
    assert caught.value.line is None or caught.value.line.split(":")[0].endswith(".py")
    assert torch.overrides._len_torch_function_stack() == 0
    with Graph() as other:
        y = x + 1
    other.replay()
    assert_same(y, x + 1)


def replays(body: Callable[[Tensor], Tensor], x: Tensor, others: list[Tensor]) -> None:
    """The graph gives eager's bits for each new value of its input."""
    with Graph() as graph:
        y = body(x)
    for other in others:
        x.copy_(other)
        y.fill_(77)
        graph.replay()
        assert_same(y, body(other.clone()))


def scripted() -> Callable[[Tensor], Tensor]:
    @torch.jit.script
    def branch(x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x + 1
        return x - 1

    return branch


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.sum().item(),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: [1, 2, 3][x[0].long()],
        lambda x: x[: x[1].long()],
        lambda x: torch.zeros(x[1].long()),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: 1.0 in x,
        lambda x: str(x),
    ],
)
def test_trap_1_a_value_read_on_the_host_is_refused(body: Body) -> None:
    refused(body, torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: torch._saturate_weight_to_fp16(x * 1e6),
        lambda x: torch.choose_qparams_optimized(x, 3, 200, 0.16, 8),
        lambda x: x + torch.quasirandom.SobolEngine(3).draw(1),
    ],
)
def test_trap_1_a_composite_that_computes_on_bare_pointers_is_refused(body: Body) -> None:
    refused(body, torch.randn(3), "bare pointers")


@pytest.mark.parametrize("body", [lambda x: torch.empty(3).add_(x), lambda x: torch.empty(3).clamp_(0, 1) + x])
def test_trap_1_memory_that_nobody_wrote_is_not_updated(body: Body) -> None:
    refused(body, torch.randn(3), "no recorded call has written")


def test_trap_1_a_product_with_beta_0_reads_no_memory_that_nobody_wrote() -> None:
    def body(x: Tensor) -> Tensor:
        y = torch.baddbmm(torch.empty(2, 3, 3), x, x, beta=0.0)
        return y + torch.empty(3, 3).addmm_(x[0], x[1], beta=0)

    replays(body, torch.randn(2, 3, 3), [torch.randn(2, 3, 3) for _ in range(3)])


def test_trap_1_a_scripted_condition_is_refused() -> None:
    refused(scripted(), torch.ones(3), "reads a value")


def test_trap_2_control_flow_above_the_dispatcher_is_refused_or_right() -> None:
    refused(lambda x: F.one_hot(x.long()), torch.tensor([0.0, 1.0]))
    refused(lambda x: torch.narrow(x, 0, x[0].long(), 2), torch.tensor([1.0, 2.0, 3.0]))
    # cov compares its divisor with zero on the host, and gaussian_nll_loss asks whether a variance is negative
    refused(torch.cov, torch.randn(3, 5), "reads a value")
    refused(lambda x: F.gaussian_nll_loss(x[0], x[1], x[2].abs() + 1), torch.randn(3, 4), "reads a value")


def test_trap_2_tensor_split_at_a_tensor_s_values_is_refused_or_right() -> None:
    x, at = torch.arange(6.0), torch.tensor([1, 3])
    try:
        with Graph() as graph:
            y = torch.tensor_split(x, at)[1] + 0
    except CaptureError:
        return
    at.copy_(torch.tensor([2, 4]))
    graph.replay()
    assert_same(y, x[2:4])


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: np.sin(x),
        lambda x: torch.as_tensor(np.asarray(x)),
        lambda x: x.data_ptr(),
        lambda x: x.untyped_storage(),
        lambda x: x.storage(),
        lambda x: x.__dlpack__(),
        lambda x: torch.from_dlpack(x),
        lambda x: [float(v) for v in x],
        lambda x: setattr(x, "data", torch.ones(3)),
        lambda x: __import__("copy").deepcopy(x),
        lambda x: memoryview(x.numpy()),
    ],
)
def test_trap_3_what_the_dispatcher_does_not_see_is_refused(body: Body) -> None:
    refused(body, torch.zeros(3))


def test_trap_4_a_constant_made_inside_is_pristine_at_each_replay() -> None:
    x = torch.ones(1)
    with Graph() as graph:
        total = torch.tensor([0.0])
        total += x
    for value in (1.0, 5.0, 2.0):
        x.fill_(value)
        graph.replay()
        assert_same(total, torch.tensor([value]))


def test_trap_5_a_result_of_another_thread_is_not_a_constant() -> None:
    x, made = torch.zeros(3), []
    try:
        with Graph() as graph:
            thread = threading.Thread(target=lambda: made.append(x * 2))
            thread.start()
            thread.join()
            y = made[0] + 1
    except CaptureError:
        return
    x.fill_(1)
    graph.replay()
    assert_same(y, x * 2 + 1)


@pytest.mark.parametrize(
    "body",
    [
        torch.nonzero,
        lambda x: x[x > 0],
        torch.unique,
        lambda x: torch.masked_select(x, x > 0),
        torch.unique_consecutive,
    ],
)
def test_trap_6_a_size_that_depends_on_data_is_refused(body: Body) -> None:
    refused(body, torch.tensor([1.0, -1.0, 2.0]))


class Passes(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "body", [torch.linalg.svdvals, torch.linalg.cond, lambda x: torch.linalg.matrix_norm(x, "nuc")]
)
@pytest.mark.parametrize("under_a_mode", [False, True])
def test_trap_7_a_python_dispatch_mode_does_not_change_what_is_replayed(body: Body, under_a_mode: bool) -> None:
    """Under a mode torch takes other kernels, with other bits: the capture is refused before it begins."""
    x = torch.randn(4, 4)
    if under_a_mode:
        with pytest.raises(StateError, match="Passes"), Passes(), Graph():
            body(x)
        assert torch.overrides._len_torch_function_stack() == 0
        return
    with Graph() as graph:
        y = body(x)
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert_same(y, body(x))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.squeeze_(0),
        lambda x: x.t_(),
        lambda x: x.unsqueeze_(0),
        lambda x: x.resize_(8),
        lambda x: x.set_(torch.ones(3)),
        lambda x: x.transpose_(0, 1),
        lambda x: x.as_strided_((1,), (1,)),
    ],
)
def test_trap_8_metadata_changed_in_place_on_an_input_is_refused(body: Body) -> None:
    refused(body, torch.zeros(1, 3), "changes the size or the memory")


def test_trap_8_metadata_changed_in_place_on_a_temporary_is_right() -> None:
    replays(
        lambda x: (x + 1).squeeze_(0).unsqueeze_(1).t_() * 2, torch.zeros(1, 3), [torch.randn(1, 3) for _ in range(2)]
    )


@pytest.mark.parametrize("how", ["other seed", "same seed", "state", "state, nothing drawn", "another generator"])
def test_trap_9_seeding_inside_is_refused_or_repeated(how: str) -> None:
    torch.manual_seed(5)
    torch.rand(2)
    state, other = torch.get_rng_state(), torch.Generator()
    torch.rand(2)
    seed: dict[str, Callable[[], object]] = {
        "other seed": lambda: torch.manual_seed(77),
        "same seed": lambda: torch.manual_seed(5),
        "state": lambda: torch.set_rng_state(state),
        "state, nothing drawn": lambda: torch.set_rng_state(state),
        "another generator": lambda: other.manual_seed(3),
    }
    x = torch.zeros(3)
    try:
        with Graph() as graph:
            seed[how]()
            y = torch.rand(3, generator=other if "another" in how else None) if "nothing" not in how else x + 1
    except CaptureError:
        return
    first = y.clone()
    for _ in range(2):
        graph.replay()
        assert_same(y, first)


def test_trap_10_memory_nobody_wrote_is_not_a_result() -> None:
    x = torch.zeros(3)
    try:
        with Graph() as graph:
            y = torch.empty(3).copy_(x) + torch.empty_like(x).fill_(1)
    except CaptureError:
        pytest.fail("written memory must not be refused")
    x.fill_(4)
    graph.replay()
    assert_same(y, x + 1)


class Sub(Tensor):
    """A subclass without a dispatch of its own."""


def test_trap_11_identity_through_as_subclass_and_another_object_of_the_same_memory() -> None:
    replays(lambda x: (x.as_subclass(Sub) + 1).as_subclass(Tensor) * 2, torch.zeros(3), [torch.randn(3)])
    x = torch.zeros(4)
    twin = torch.from_dlpack(x)
    with Graph() as graph:
        twin.add_(1)
        y = x * 2
    x.fill_(3)
    graph.replay()
    assert_same(y, torch.full((4,), 8.0))


def test_trap_12_a_view_made_before_the_capture_follows_its_base() -> None:
    x = torch.zeros(2, 3)
    view = x.t()
    with Graph() as graph:
        y = view * 2
        x.add_(1)
        z = view + 0
    x.copy_(torch.arange(6.0).view(2, 3))
    graph.replay()
    assert_same([y, z], [torch.arange(6.0).view(2, 3).t() * 2, torch.arange(1.0, 7.0).view(2, 3).t() + 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_trap_13_python_numbers_stay_wrapped_numbers(dtype: torch.dtype) -> None:
    body = lambda x: x * 0.1 + torch.rsub(x, 3) + torch.where(x > 0.3, x, 0.1) + x.clamp(0.1, 7.3)  # noqa: E731
    replays(body, torch.ones(5, dtype=dtype), [torch.arange(5).to(dtype), torch.arange(5).to(dtype) * 3])


def test_trap_13_a_tensor_of_no_dimensions_is_no_constant() -> None:
    x, scale = torch.ones(3), torch.tensor(2.0, dtype=torch.float64)
    with Graph() as graph:
        y = x * scale
    scale.fill_(0.1)
    graph.replay()
    assert_same(y, x * scale)


def test_trap_14_what_raised_and_was_caught_is_not_replayed() -> None:
    def body(x: Tensor) -> Tensor:
        try:
            y = x.view(7)
        except RuntimeError:
            y = x + 1
        try:
            z = torch.index_select(x, 0, torch.tensor([9]))
        except IndexError:
            z = x + 2
        return y * z

    replays(body, torch.ones(3), [torch.randn(3), torch.randn(3)])


def test_trap_14_an_inference_tensor_is_not_written_outside_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.zeros(3)
        with Graph() as graph:
            x.add_(1)
        graph.replay()
    with pytest.raises(RuntimeError):
        graph.replay()


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "setitem": lambda x: x.clone().index_fill_(0, torch.tensor([1]), 5),
    "foreach": lambda x: torch._foreach_add(torch._foreach_mul([x, x + 1], 2), 1)[1],
    "vmap": lambda x: torch.vmap(lambda r: r.sum() * r)(x),
    "grad": lambda x: torch.func.grad(lambda t: (t**3).sum())(x),
    "jvp": lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1],
    "complex": lambda x: torch.view_as_real(torch.complex(x, x).conj() * 2),
    "sdpa": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "linalg": lambda x: torch.linalg.solve(x @ x.t() + torch.eye(4), x),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_without_care(name: str) -> None:
    replays(RIGHT[name], torch.randn(4, 4), [torch.randn(4, 4) for _ in range(2)])
