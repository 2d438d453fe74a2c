"""Collectives between processes: what each rank gets is what a plain definition says, at once and in graphs; ranks that
disagree or are gone are errors with words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref, c_char_p, c_int32, c_uint32, c_uint64, c_void_p, create_string_buffer
from typing import Any

import ascend_sim
import pytest
from ascend_sim import runtime

from .ranks import Ranks

import torch  # isort: skip
import torch.distributed as dist  # isort: skip
from torch import Tensor  # isort: skip

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
OTHERS = [torch.uint8, torch.bool, torch.float64]
OPS = {"sum": dist.ReduceOp.SUM, "product": dist.ReduceOp.PRODUCT, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
ROOT_INFO_BYTES = 4108
SIZES = [1, 5, 8, 1000]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(2, tmp_path_factory.mktemp("two"))
    yield ranks
    assert ranks.stop() == [0, 0]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(4, tmp_path_factory.mktemp("four"))
    yield ranks
    assert ranks.stop() == [0, 0, 0, 0]


@pytest.fixture(params=["two", "four"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    found: Ranks = request.getfixturevalue(request.param)
    return found


def values(rank: int, size: int, dtype: torch.dtype, salt: int = 0) -> Tensor:
    """What a rank gives, on the CPU; every rank knows it of all."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    if dtype.is_floating_point:
        return torch.randn(size, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, (size,), generator=generator).to(dtype)
    return torch.randint(0 if dtype == torch.uint8 else -9, 10, (size,), generator=generator).to(dtype)


def reduced(op: str, inputs: list[Tensor]) -> Tensor:
    """In the order of ranks, 16-bit floats in float."""
    dtype = inputs[0].dtype
    total = inputs[0].float() if dtype in FLOATS else inputs[0]
    for x in inputs[1:]:
        x = x.to(total.dtype)
        if op == "sum":
            total = total + x
        elif op == "product":
            total = total * x
        else:
            total = torch.maximum(total, x) if op == "max" else torch.minimum(total, x)
    return total.to(dtype)


def same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and torch.equal(got.cpu(), want), (got.cpu(), want)


# --- what the ranks run


def all_reduce(rank: int, count: int) -> None:
    for dtype in FLOATS + INTEGERS:
        for op in OPS:
            for size in SIZES:
                x = values(rank, size, dtype).npu()
                dist.all_reduce(x, OPS[op])
                same(x, reduced(op, [values(r, size, dtype) for r in range(count)]))
    for dtype in (torch.uint8, torch.bool):  # torch_npu casts them: the device has none
        x = values(rank, 5, dtype).npu()
        dist.all_reduce(x, OPS["max"])
        same(x, reduced("max", [values(r, 5, dtype) for r in range(count)]))


def reduce_to_one(rank: int, count: int) -> None:
    for root in range(count):
        x = values(rank, 7, torch.float32).npu()
        dist.reduce(x, root, OPS["sum"])
        if rank == root:
            same(x, reduced("sum", [values(r, 7, torch.float32) for r in range(count)]))


def all_gather(rank: int, count: int) -> None:
    for dtype in FLOATS + INTEGERS + OTHERS:
        for size in SIZES:
            wants = [values(r, size, dtype) for r in range(count)]
            out = torch.empty(size * count, dtype=dtype, device="npu")
            dist.all_gather_into_tensor(out, values(rank, size, dtype).npu())
            same(out, torch.cat(wants))
            parts = [torch.empty(size, dtype=dtype, device="npu") for _ in range(count)]
            dist.all_gather(parts, values(rank, size, dtype).npu())
            for part, want in zip(parts, wants, strict=True):
                same(part, want)


def all_gather_of_different_sizes(rank: int, count: int) -> None:
    parts = [torch.empty(r + 2, device="npu") for r in range(count)]
    dist.all_gather(parts, values(rank, rank + 2, torch.float32).npu())
    for r in range(count):
        same(parts[r], values(r, r + 2, torch.float32))


def reduce_scatter(rank: int, count: int) -> None:
    for dtype in FLOATS + INTEGERS:
        for op in OPS:
            whole = reduced(op, [values(r, 6 * count, dtype) for r in range(count)])
            out = torch.empty(6, dtype=dtype, device="npu")
            dist.reduce_scatter_tensor(out, values(rank, 6 * count, dtype).npu(), OPS[op])
            same(out, whole[6 * rank : 6 * rank + 6])
            dist.reduce_scatter(out.zero_(), list(values(rank, 6 * count, dtype).npu().chunk(count)), OPS[op])
            same(out, whole[6 * rank : 6 * rank + 6])


def all_to_all(rank: int, count: int) -> None:
    for dtype in FLOATS + INTEGERS + OTHERS:
        out = torch.empty(3 * count, dtype=dtype, device="npu")
        dist.all_to_all_single(out, values(rank, 3 * count, dtype).npu())
        same(out, torch.cat([values(r, 3 * count, dtype)[3 * rank : 3 * rank + 3] for r in range(count)]))
    # from rank r to rank s: r + 2 s elements, none for 0 to 0
    given = [values(10 * rank + s, rank + 2 * s, torch.float32) for s in range(count)]
    wanted = [values(10 * r + rank, r + 2 * rank, torch.float32) for r in range(count)]
    sizes = [[len(x) for x in xs] for xs in (wanted, given)]
    out = torch.empty(sum(sizes[0]), device="npu")
    dist.all_to_all_single(out, torch.cat(given).npu(), *sizes)
    same(out, torch.cat(wanted))
    outs = [torch.empty(len(w), device="npu") for w in wanted]
    dist.all_to_all(outs, [x.npu() for x in given])
    for got, want in zip(outs, wanted, strict=True):
        same(got, want)


def broadcast_and_scatter(rank: int, count: int) -> None:
    for root in range(count):
        for dtype in FLOATS + INTEGERS + OTHERS:
            x = values(rank, 9, dtype).npu()
            dist.broadcast(x, root)
            same(x, values(root, 9, dtype))
        out = torch.empty(4, device="npu")
        parts = [values(root, 4, torch.float32, s).npu() for s in range(count)]
        dist.scatter(out, parts if rank == root else None, root)
        same(out, values(root, 4, torch.float32, rank))


def one_to_another(rank: int, count: int) -> None:
    x, got = values(rank, 33, torch.float16).npu(), torch.empty(33, dtype=torch.float16, device="npu")
    if rank % 2 == 0:
        dist.send(x, rank + 1)
        dist.recv(got, rank + 1)
    else:
        dist.recv(got, rank - 1)
        dist.send(x, rank - 1)
    same(got, values(rank ^ 1, 33, torch.float16))
    ahead, behind = (rank + 1) % count, (rank - 1) % count  # a ring: each waits for both neighbours at once
    ops = [dist.P2POp(dist.isend, x, ahead), dist.P2POp(dist.irecv, got, behind)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    same(got, values(behind, 33, torch.float16))


def large(rank: int, count: int) -> None:
    """More than a socket holds, both ways at once."""
    size = 3_000_001
    x = values(rank, size, torch.float32).npu()
    dist.all_reduce(x)
    same(x, reduced("sum", [values(r, size, torch.float32) for r in range(count)]))
    out = torch.empty(size * count, device="npu")
    dist.all_gather_into_tensor(out, values(rank, size, torch.float32).npu())
    same(out, torch.cat([values(r, size, torch.float32) for r in range(count)]))


def nothing(rank: int, count: int) -> None:
    """No elements at all."""
    dist.all_reduce(torch.empty(0, device="npu"))
    dist.all_gather_into_tensor(torch.empty(0, device="npu"), torch.empty(0, device="npu"))
    dist.all_to_all_single(torch.empty(0, device="npu"), torch.empty(0, device="npu"))
    torch.npu.synchronize()


def barrier(rank: int, count: int) -> tuple[float, float]:
    dist.barrier()
    time.sleep(0.2 * rank)
    came = time.monotonic()
    dist.barrier()
    torch.npu.synchronize()
    return came, time.monotonic()


def the_host_goes_on(rank: int, count: int) -> bool:
    """A call is given while the other rank is not there yet."""
    dist.barrier()
    torch.npu.synchronize()
    if rank != 0:
        time.sleep(1)
    x = torch.ones(4, device="npu")
    work = dist.all_reduce(x, async_op=True)
    early = work.is_completed()
    work.wait()
    same(x * 2, torch.full((4,), 2.0 * count))
    assert work.is_completed()
    return bool(early)


def calls_in_flight(rank: int, count: int) -> None:
    xs = [values(rank, 50, torch.float32, salt).npu() for salt in range(20)]
    works = [dist.all_reduce(x, async_op=True) for x in xs]
    for work in works:
        work.wait()
    for salt, x in enumerate(xs):
        same(x, reduced("sum", [values(r, 50, torch.float32, salt) for r in range(count)]))


def groups(rank: int, count: int) -> None:
    pairs = [dist.new_group([i, i + 1]) for i in range(0, count, 2)]
    odd = dist.new_group(list(range(1, count, 2)))
    x = values(rank, 5, torch.float32).npu()
    dist.all_reduce(x, group=pairs[rank // 2])
    first = rank // 2 * 2
    same(x, reduced("sum", [values(r, 5, torch.float32) for r in (first, first + 1)]))
    if rank % 2 == 1:
        y = values(rank, 5, torch.float32).npu()
        dist.all_reduce(y, group=odd)
        same(y, reduced("sum", [values(r, 5, torch.float32) for r in range(1, count, 2)]))
    dist.all_reduce(x)


def in_a_graph(rank: int, count: int) -> tuple[int, int]:
    x, y = torch.zeros(6 * count, device="npu"), torch.zeros(6, device="npu")
    dist.all_reduce(x)  # the communicator is made before
    torch.npu.synchronize()
    called = ascend_sim.calls()["HcclAllReduce"]
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        z = x * 2
        dist.all_reduce(z)
        dist.reduce_scatter_tensor(y, z + 1)
        every = torch.empty(6 * count, device="npu")
        dist.all_gather_into_tensor(every, y)
        over = torch.empty(6 * count, device="npu")
        dist.all_to_all_single(over, every)
        dist.broadcast(over, 0)
        out = over + 1
    for step in range(4):
        x.copy_(values(rank, 6 * count, torch.float32, step))
        graph.replay()
        doubled = reduced("sum", [values(r, 6 * count, torch.float32, step) * 2 for r in range(count)])
        scattered = reduced("sum", [doubled + 1] * count)
        same(every, scattered)
        same(out, scattered.view(count, 6)[0].repeat(count) + 1)
    return ascend_sim.calls()["HcclAllReduce"] - called, ascend_sim.usage(rank).graph_tasks


def a_graph_outlives_its_group(rank: int, count: int) -> str:
    group, x = dist.new_group(list(range(count))), torch.ones(3, device="npu")
    dist.all_reduce(x, group=group)
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        dist.all_reduce(x, group=group)
    dist.barrier()
    dist.destroy_process_group(group)
    return attempt(graph.replay)


def functional(rank: int, count: int) -> None:
    import torch.distributed._functional_collectives as funcol

    group = dist.group.WORLD
    x = values(rank, 4 * count, torch.float32).npu()
    total = reduced("sum", [values(r, 4 * count, torch.float32) for r in range(count)])
    same(funcol.all_reduce(x, "sum", group) + 0, total)
    same(funcol.reduce_scatter_tensor(x, "sum", 0, group) + 0, total[4 * rank : 4 * rank + 4])
    gathered = torch.cat([values(r, 4 * count, torch.float32) for r in range(count)])
    same(funcol.all_gather_tensor(x, 0, group) + 0, gathered)
    columns = gathered.view(count, count, 4)[:, rank].reshape(-1)
    same(funcol.all_to_all_single(x, None, None, group) + 0, columns)


def in_virtual_time(rank: int, count: int) -> list[str]:
    with ascend_sim.timeline() as line:
        dist.all_reduce(torch.ones(1 << 20, device="npu"))
        torch.npu.synchronize()
    (event,) = [e for e in line.events() if e["name"] == "HcclAllReduce"]
    assert event["pid"] == rank and event["dur"] > 10  # microseconds for 8 MiB
    return [e["name"] for e in line.events()]


# --- the tests


@pytest.mark.parametrize(
    "what",
    [
        all_reduce,
        reduce_to_one,
        all_gather,
        all_gather_of_different_sizes,
        reduce_scatter,
        all_to_all,
        broadcast_and_scatter,
        one_to_another,
        large,
        nothing,
        calls_in_flight,
        groups,
        functional,
        in_virtual_time,
    ],
    ids=lambda f: f.__name__,
)
def test_every_rank_gets_what_the_definition_says(ranks: Ranks, what: Callable[..., Any]) -> None:
    ranks.run(what)


def test_nobody_passes_a_barrier_before_the_last_has_come(ranks: Ranks) -> None:
    came, passed = zip(*ranks.run(barrier), strict=True)
    assert max(came) <= min(passed)


def test_the_host_goes_on_while_a_call_waits_for_others(two: Ranks) -> None:
    assert two.run(the_host_goes_on)[0] is False


def test_a_graph_keeps_collectives_and_runs_them_at_each_replay(ranks: Ranks) -> None:
    for called, tasks in ranks.run(in_a_graph):
        assert called == 1 and tasks > 6


def test_a_graph_whose_group_was_destroyed_says_so(two: Ranks) -> None:
    for said in two.run(a_graph_outlives_its_group):
        assert "507049" in said and "was destroyed" in said


def test_devices_in_check_mode(tmp_path: Any) -> None:
    """What HCCL touches is given to it by tasks: nothing else may touch a device's memory."""
    ranks = Ranks(2, tmp_path, ASCEND_SIM_CHECK=1)
    ranks.run(reduce_scatter)
    ranks.run(broadcast_and_scatter)
    ranks.run(one_to_another)
    assert ranks.stop() == [0, 0]


def attempt(what: Callable[[], Any]) -> str:
    try:
        what()
        torch.npu.synchronize()
        return "fine"
    except RuntimeError as error:
        return str(error)


def disagree(rank: int, count: int) -> dict[str, str]:
    ones = lambda n, dtype=torch.float32: torch.ones(n, dtype=dtype, device="npu")  # noqa: E731
    said = {}
    for name, call in {
        "sizes": lambda g: dist.all_reduce(ones(4 + rank), group=g),
        "dtypes": lambda g: dist.all_reduce(ones(4, torch.float16 if rank else torch.float32), group=g),
        "operations": lambda g: dist.all_reduce(ones(4), OPS["max" if rank else "sum"], group=g),
        "calls": lambda g: dist.broadcast(ones(4), 0, g) if rank else dist.all_reduce(ones(4), group=g),
        "roots": lambda g: dist.broadcast(ones(4), rank, g),
        "parts": lambda g: dist.all_to_all_single(ones(4), ones(4), [2, 2], [3, 1] if rank else [2, 2], g),
    }.items():
        group = dist.new_group(list(range(count)))
        said[name] = attempt(lambda call=call, group=group: call(group))
        said[f"after {name}"] = attempt(lambda group=group: dist.all_reduce(ones(4), group=group))
    dist.all_reduce(ones(4))  # of a group that nothing happened to
    torch.npu.synchronize()
    return said


def without_the_other(rank: int, count: int, ends: bool) -> str:
    group = dist.new_group(list(range(count)))
    dist.all_reduce(torch.ones(3, device="npu"), group=group)
    torch.npu.synchronize()
    if rank == 0:
        return attempt(lambda: dist.all_reduce(torch.ones(3, device="npu"), group=group))
    if ends:
        os._exit(7)
    return "away"


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two ranks that lose each other; torch_npu's watchdog would end the processes a second later."""
    ranks = Ranks(2, tmp_path_factory.mktemp("lost"), HCCL_EXEC_TIMEOUT=5, HCCL_ASYNC_ERROR_HANDLING=0)
    yield ranks
    ranks.stop()


def test_ranks_that_disagree_are_told_so(lost: Ranks) -> None:
    for said in lost.run(disagree):
        for name, text in said.items():
            assert "507049" in text and "EI0005" in text and "disagree" in text, (name, text)
        assert "HcclAllReduce of 4 float32, sum" in said["sizes"] and "of 5 float32" in said["sizes"]
        assert "float16" in said["dtypes"] and "max" in said["operations"]
        assert "HcclBroadcast" in said["calls"] and "root 1" in said["roots"]
        assert "12 bytes sent" in said["parts"]


def test_a_rank_that_stays_away_does_not_hold_up_the_other_for_ever(lost: Ranks) -> None:
    said, away = lost.run(without_the_other, False)
    assert away == "away" and "507048" in said and "waited 5 s (HCCL_EXEC_TIMEOUT) for rank 1" in said


def test_a_rank_that_ended_is_seen_at_once(lost: Ranks) -> None:
    lost.ask(without_the_other, True)
    said = lost.answer(0)
    assert "507048" in said and "EI0002: rank 1 of group" in said and "is gone" in said
    with pytest.raises(AssertionError, match="rank 1 ended"):
        lost.answer(1)


# --- HCCL itself: ranks that are threads of this process


def libraries() -> tuple[CDLL, CDLL]:
    hccl, acl = CDLL(str(runtime.FOLDER / "libhccl.so")), runtime.load()
    hccl.HcclGetErrorString.restype = acl.aclGetRecentErrMsg.restype = c_char_p
    hccl.HcclBroadcast.argtypes = [c_void_p, c_uint64, c_int32, c_uint32, c_void_p, c_void_p]
    return hccl, acl


def test_two_ranks_in_one_process_do_not_hold_each_other_up() -> None:
    hccl, acl = libraries()
    root = create_string_buffer(ROOT_INFO_BYTES)
    assert hccl.HcclGetRootInfo(byref(root)) == 0
    send = [torch.full((5,), float(i + 1), device=f"npu:{i}") for i in range(2)]
    torch.npu.synchronize(0)
    torch.npu.synchronize(1)

    def work(rank: int) -> None:
        comm, stream, size = c_void_p(), c_void_p(), c_uint32()
        assert acl.aclrtSetDevice(rank) == 0
        assert hccl.HcclCommInitRootInfo(2, byref(root), rank, byref(comm)) == 0
        assert hccl.HcclGetRankSize(comm, byref(size)) == 0 and size.value == 2
        assert acl.aclrtCreateStream(byref(stream)) == 0
        at = c_void_p(send[rank].data_ptr())
        for _ in range(10):
            assert hccl.HcclAllReduce(at, at, c_uint64(5), 4, 0, comm, stream) == 0
        assert acl.aclrtSynchronizeStream(stream) == 0
        assert hccl.HcclCommDestroy(comm) == 0

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    for x in send:
        assert x.tolist() == [3.0 * 2**9] * 5


def on_threads(work: Callable[[int], Any]) -> list[Any]:
    _, acl = libraries()

    def of(rank: int) -> Any:
        assert acl.aclrtSetDevice(rank) == 0
        return work(rank)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(of, range(2)))


def test_calls_that_torch_npu_makes_on_other_chips_only(tmp_path: Any) -> None:
    hccl, acl = libraries()
    table = tmp_path / "ranks.json"
    table.write_text('{"server_list": [{"device": [{"device_id": "0", "rank_id": "0"}, {"rank_id": "1"}]}]}')
    given = [torch.arange(6.0) + 10 * rank for rank in range(2)]
    x, out = ([t.to(f"npu:{i}") for i, t in enumerate(ts)] for ts in (given, [torch.zeros(6)] * 2))
    for rank in range(2):
        torch.npu.synchronize(rank)
    u64 = lambda *numbers: byref((c_uint64 * len(numbers))(*numbers))  # noqa: E731
    fp32, total = 4, 0

    def work(rank: int) -> list[list[float]]:
        whole, comm = c_void_p(), c_void_p()
        assert hccl.HcclCommInitClusterInfo(str(table).encode(), rank, byref(whole)) == 0
        ids = (c_uint32 * 2)(0, 1)
        assert hccl.HcclCreateSubCommConfig(byref(whole), 2, ids, c_uint64(3), rank, None, byref(comm)) == 0
        assert hccl.HcclCommDestroy(whole) == 0  # the other one goes on
        a, b, found = c_void_p(x[rank].data_ptr()), c_void_p(out[rank].data_ptr()), []

        def done(code: int) -> None:
            assert code == 0 and acl.aclrtSynchronizeStream(None) == 0, acl.aclGetRecentErrMsg()
            found.append(out[rank].tolist())

        done(hccl.HcclAlltoAllVC(a, u64(1, 2, 3, 1), fp32, b, fp32, comm, None))
        sizes = u64(2, 4), u64(4, 0)  # rank 0's part last
        done(hccl.HcclAllGatherV(a, c_uint64((2, 4)[rank]), b, *sizes, fp32, comm, None))
        done(hccl.HcclReduceScatterV(a, *sizes, b, c_uint64((2, 4)[rank]), fp32, total, comm, None))
        done(hccl.HcclBarrier(comm, None))
        assert hccl.HcclGroupStart() == 0
        for call, at in (hccl.HcclSend, a), (hccl.HcclRecv, b):
            assert call(at, c_uint64(6), fp32, 1 - rank, comm, None) == 0
        done(hccl.HcclGroupEnd())
        assert hccl.HcclAllReduce(a, b, c_uint64(6), 10, total, comm, None) == 5  # float64 is not reduced
        assert hccl.HcclCommSuspend(comm) == 0 and hccl.HcclBarrier(comm, None) == 22
        assert hccl.HcclCommResume(comm) == 0 and hccl.HcclBarrier(comm, None) == 0
        assert acl.aclrtSynchronizeStream(None) == 0 and hccl.HcclCommDestroy(comm) == 0
        return found

    first, second = on_threads(work)
    assert first[0][:4] == [0, 10, 11, 12] and second[0][:3] == [1, 2, 13]
    assert first[1] == second[1] == [10, 11, 12, 13, 0, 1]
    assert first[2][:2] == [18, 20] and second[2][:4] == [10, 12, 14, 16]
    assert first[4] == given[1].tolist() and second[4] == given[0].tolist()


@pytest.mark.parametrize("what", ["ranks", "device", "twice"])
def test_ranks_that_do_not_fit_together_make_no_communicator(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "10")
    hccl, acl = libraries()
    root = create_string_buffer(ROOT_INFO_BYTES)
    assert hccl.HcclGetRootInfo(byref(root)) == 0

    def work(rank: int) -> str:
        if what == "device":
            acl.aclrtSetDevice(0)
        count, me = 2 + rank * (what == "ranks"), 0 if what == "twice" else rank
        assert hccl.HcclCommInitRootInfo(count, byref(root), me, byref(c_void_p())) != 0
        return str(acl.aclGetRecentErrMsg())

    said = " ".join(on_threads(work))
    expected = {"ranks": "one knows of 2 ranks, the other of 3", "device": "both on device 0", "twice": "there already"}
    assert expected[what] in said


def test_all_devices_of_one_process_at_once() -> None:
    hccl, acl = libraries()
    comms = (c_void_p * 2)()
    assert hccl.HcclCommInitAll(2, (c_int32 * 2)(0, 1), comms) == 0
    tensors = [torch.full((3,), float(i), device=f"npu:{i}") for i in range(2)]
    for i in range(2):
        torch.npu.synchronize(i)
        acl.aclrtSetDevice(i)
        assert hccl.HcclBroadcast(tensors[i].data_ptr(), 3, 4, 1, comms[i], None) == 0
    for i in range(2):
        acl.aclrtSetDevice(i)
        assert acl.aclrtSynchronizeStream(None) == 0
        assert tensors[i].tolist() == [1.0] * 3
        assert hccl.HcclCommDestroy(c_void_p(comms[i])) == 0
    acl.aclrtSetDevice(0)


def test_a_rank_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "1")
    hccl, acl = libraries()
    root, comm = create_string_buffer(ROOT_INFO_BYTES), c_void_p()
    assert hccl.HcclGetRootInfo(byref(root)) == 0
    acl.aclrtSetDevice(0)
    code = hccl.HcclCommInitRootInfo(3, byref(root), 1, byref(comm))
    assert code == 9 and hccl.HcclGetErrorString(code) == b"timeout"
    assert b"EI0006: rank 1" in (text := acl.aclGetRecentErrMsg()) and b"for rank 0, of 3" in text
