"""What equals what, the remaining lines: leases, resume, version counters, iterators, lying schemas, limits, sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import graphmode
from graphmode import _C

from .ops import OwnError, Switches
from .ways import Way, assert_same, beside_eager, both_ways, counted, reasons, replayed, rng_state, set_rng_state

ops = torch.ops.gm_contract


@pytest.fixture(autouse=True)
def no_switch_left_on() -> Iterator[None]:
    yield
    Switches.raising = Switches.columns_first = False


@both_ways()
def test_c1_s_reference_has_the_same_thread_count(way: Way) -> None:
    f = lambda x: (x.sum(), x.mean(), torch.atan2(x, x + 1), x.abs().pow(1.7))  # noqa: E731
    x = torch.randn(200_000)
    for threads in (1, 2, 1, 2):
        torch.set_num_threads(threads)
        with replayed(1):
            beside_eager(way, f, [(x,)] * 4)


@both_ways()
def test_an_escaping_view_of_an_intermediate_does_not_lie_in_the_arena(way: Way) -> None:
    g = way(lambda x: (torch.exp(x)[1:3], torch.tanh(x).t(), (x + 1).view(-1)[::2]))
    other = way(lambda x: torch.exp(x) @ torch.tanh(x))
    x = torch.randn(4, 4)
    held = []
    with replayed(6):
        for _ in range(6):
            held.append(g(x))
            other(torch.randn(64, 64))
    assert_same(held, [held[0]] * 6)
    assert_same(held[0], (torch.exp(x)[1:3], torch.tanh(x).t(), (x + 1).view(-1)[::2]))


@both_ways()
def test_a_lease_is_given_back_after_an_exception_and_after_re_entry(way: Way) -> None:
    Switches.inner = way(lambda z: torch.tanh(z) * 3 + z.exp().sum())
    g = way(lambda x: ops.may_raise(ops.calls_inner(torch.exp(x) + 1)) * 2)
    x = torch.randn(50)
    for i in range(12):
        Switches.raising = i in (6, 8)
        if Switches.raising:
            with pytest.raises(OwnError):
                g(x)
        else:
            g(x)
    assert _C.arena_blocks() <= 2
    graphmode.reset()
    assert _C.arena_bytes() == 0


@both_ways()
def test_resume_don_t_restart_where_an_opaque_op_gives_other_strides(way: Way) -> None:
    """The call goes on live from that node: what came before has happened, once."""

    def f(x: Tensor, counter: Tensor) -> Tensor:
        counter.add_(1)
        noise = torch.rand_like(x)
        y = ops.other_strides(x)
        counter.add_(10)
        return y * 2 + noise

    g, counter = way(f), torch.zeros(())
    x = torch.randn(3, 4)
    for i in range(9):
        Switches.columns_first = i in (5, 7)
        state = rng_state()
        got = g(x, counter)
        set_rng_state(state)
        assert_same(got, f(x, torch.zeros(())))
        assert counter.item() == 11 * (i + 1)


@both_ways()
def test_version_counters_are_bumped_once_a_replay_for_what_it_wrote(way: Way) -> None:
    g = way(lambda a, b: (a.add_(b), a.mul_(2), b + 1))
    a, b = torch.zeros(3), torch.ones(3)
    with replayed(2):
        for _ in range(5):
            before = a._version, b._version
            g(a, b)
            assert a._version > before[0] and b._version == before[1]


@both_ways()
def test_version_counters_let_autograd_see_a_stale_save(way: Way) -> None:
    g, buffer = way(lambda b: b.add_(1)), torch.zeros(3)
    for _ in range(4):
        g(buffer)
    w = torch.ones(3, requires_grad=True)
    product = (w * buffer).sum()
    with replayed(1):
        g(buffer)
    with pytest.raises(RuntimeError, match="inplace operation"):
        product.backward()


@both_ways()
def test_version_counters_through_a_view_handed_in_and_a_view_handed_out(way: Way) -> None:
    g = way(lambda row: (row.add_(1), row[1:]))
    base = torch.zeros(4, 3)
    for i in range(6):
        before = base._version
        _, view = g(base[i % 4])
        assert base._version > before
        before = base._version
        view.add_(1)
        assert base._version > before


@pytest.mark.cpu("an index out of range is found by the device, at the next synchronisation")
@both_ways()
def test_version_counters_are_bumped_when_a_replay_raises_after_a_write(way: Way) -> None:
    g = way(lambda x, i: (x.add_(1), x.index_select(0, i)))
    x, good = torch.zeros(3), torch.tensor([0])
    for _ in range(4):
        g(x, good)
    before = x._version
    with pytest.raises(IndexError):
        g(x, torch.tensor([9]))
    assert_same(x, torch.full((3,), 5.0))
    assert x._version > before


@both_ways()
def test_re_binding_an_iterator_holds_for_reductions_at_many_addresses(way: Way) -> None:
    f = lambda x: (x.sum(-1), x.sum(), x.mean(0), x.amax(1), x.prod(-1), x.logsumexp(0), x.var(1), x.cumsum(1))  # noqa: E731
    with replayed(8):
        beside_eager(way, f, [(torch.randn(17, 33),) for _ in range(10)])


@both_ways()
def test_schemas_lie_native_batch_norm_writes_its_statistics(way: Way) -> None:
    def f(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)  # its result is not used
        return x * 2

    with replayed(3):
        beside_eager(way, f, [(torch.randn(4, 3), torch.zeros(3), torch.ones(3)) for _ in range(5)])


@both_ways()
def test_dynamo_s_recompile_limit_is_noticed_counted_and_named(way: Way) -> None:
    g, x = way(lambda x, name: x + len(name)), torch.ones(3)
    with counted() as since:
        for i in range(20):
            for _ in range(3):
                assert_same(g(x, "s" * i), x + i)
    assert since.live_calls > 0 or since.captures >= 20
    assert since.captures >= 20 or any("recompil" in r for r in reasons())


@both_ways()
def test_higher_order_ops_are_breaks_with_a_reason(way: Way) -> None:
    def f(x: Tensor) -> Tensor:
        y = torch.exp(x)
        return torch.cond(y.sum() > 3, lambda t: t + 1, lambda t: t - 1, (y,)) * 2

    with torch.no_grad(), counted() as since:
        beside_eager(way, f, [(torch.full((2,), float(i % 3)),) for i in range(8)])
    assert since.breaks + since.live_calls >= 6
    assert any("cond" in r or "higher-order" in r for r in reasons())


@both_ways()
def test_one_symbolic_program_serves_many_sizes_and_size_one(way: Way) -> None:
    f = lambda x: torch.softmax(x @ x.t(), -1) + x.sum(-1, keepdim=True)  # noqa: E731
    g = way(f, max_graphs=32)
    torch._dynamo.mark_dynamic(first := torch.randn(5, 4), 0)
    g(first)
    lowered = graphmode.report().lower_seconds
    with replayed(15):
        for n in [2, 3, 7, 5, 16, 2, 9]:
            for _ in range(4):
                x = torch.randn(n, 4)
                assert_same(g(x), f(x))
    if way.__name__ == "by_torch_compile":
        assert graphmode.report().lower_seconds == lowered  # nothing was traced again
    for _ in range(4):
        assert_same(g(torch.ones(1, 4)), f(torch.ones(1, 4)))
