"""C10: several threads, re-entry, forks. Owns what runs at the same time; modes and gradients are elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import graphmode
from graphmode import _C

from .alone import alone
from .ops import Switches
from .ways import Way, assert_same, both_ways, replayed


def f(x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ w).exp() + x


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """Runs `work` in several threads, started together; the first failure is raised here."""
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def run(i: int) -> None:
        torch.set_num_threads(1)
        torch.set_default_device(os.environ.get("GRAPHMODE_TEST_DEVICE"))  # each thread has its own
        together.wait()
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise failures[0]


@both_ways()
def test_c10_threads_may_call_one_compiled_function(way: Way) -> None:
    torch.set_num_threads(1)
    g, w = way(f), torch.randn(16, 16)
    for n in (1, 4, 9):
        for _ in range(3):
            g(torch.randn(n, 16), w)

    def work(i: int) -> None:
        for n in [1, 4, 9] * 40:
            x = torch.randn(n, 16)
            assert_same(g(x, w), f(x, w))

    with replayed(400):
        in_threads(work)


@both_ways()
def test_c10_threads_may_call_functions_of_their_own(way: Way) -> None:
    torch.set_num_threads(1)
    functions = [lambda x, k=k: torch.exp(x) * k + x.sum() for k in range(4)]
    compiled = [way(h) for h in functions]
    for g in compiled:
        g(torch.randn(8))

    def work(i: int) -> None:
        for _ in range(100):
            x = torch.randn(8)
            assert_same(compiled[i](x), functions[i](x))

    with replayed(300):
        in_threads(work)


@both_ways()
def test_c10_threads_may_compile_and_capture_at_the_same_time(way: Way) -> None:
    g = way(f)

    def work(i: int) -> None:
        w = torch.randn(8, 8)
        for n in [2, 3, 4, 5] * 6:
            x = torch.randn(n, 8)
            assert_same(g(x, w), f(x, w))

    in_threads(work)


@pytest.mark.cpu("it measures the CPU's arena")
def test_c10_two_replays_at_once_lie_in_two_arenas() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(x: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(30)
        return x.clone()

    Switches.inner = torch.clone
    h = lambda x: torch.ops.gm_contract.calls_inner(torch.exp(x) + 1) * (torch.exp(x) + 2)  # noqa: E731
    g = torch.compile(h, backend="graphmode")
    for _ in range(4):
        g(torch.randn(500))
    x, y, got = torch.randn(500), torch.randn(500), []
    Switches.inner = wait
    thread = threading.Thread(target=lambda: got.append(g(x)))
    thread.start()
    assert inside.wait(30)
    Switches.inner = torch.clone
    mine = g(y)  # on this thread, while the other is half through
    assert _C.arena_blocks() == 2
    go_on.set()
    thread.join()
    assert_same([mine, got[0]], [h(y), h(x)])


@both_ways()
def test_c10_a_custom_op_may_call_another_compiled_function(way: Way) -> None:
    inner = way(lambda z: torch.tanh(z) * 3 + z)
    g = way(lambda x: torch.ops.gm_contract.calls_inner(torch.exp(x) + 1) * 2 + torch.exp(x))
    Switches.inner = inner
    with replayed(10):
        for _ in range(8):
            x = torch.randn(50)
            z = torch.exp(x) + 1
            assert_same(g(x), (torch.tanh(z) * 3 + z) * 2 + torch.exp(x))


@both_ways()
def test_c10_a_function_may_call_itself(way: Way) -> None:
    depth = [0]

    def again(x: Tensor) -> Tensor:
        if depth[0] == 0:
            return x.clone()
        depth[0] -= 1
        return g(x).clone()

    Switches.inner = again
    g = way(lambda x: torch.ops.gm_contract.calls_inner(torch.sin(x) + 1) + torch.cos(x))
    for i in range(8):
        depth[0] = i % 3
        x = torch.randn(20)
        want = x
        for _ in range(i % 3 + 1):
            want = torch.sin(want) + 1
        stack, at = [], x
        for _ in range(i % 3 + 1):
            stack.append(torch.cos(at))
            at = torch.sin(at) + 1
        for c in reversed(stack):
            want = want + c
        assert_same(g(x), want)


EVICTED = """
    import graphmode._C
    inner = [torch.clone]
    op = torch.library.custom_op("gm_alone::inner", mutates_args=())(CALL)
    op.register_fake(torch.empty_like)
    g = WAY(lambda x: torch.ops.gm_alone.inner(torch.exp(x) + 1) * 2)
    for i in range(9):
        inner[0] = (lambda x: (graphmode.reset(), x.clone())[1]) if i in (4, 7) else torch.clone
        x = torch.randn(50)
        assert torch.equal(g(x), (torch.exp(x) + 1) * 2), i
"""
CALL = "def call(x: torch.Tensor) -> torch.Tensor:\n    return inner[0](x)\n"
WAYS = {"torch": "lambda f: torch.compile(f, backend='graphmode')", "graphmode": "graphmode.compile"}


@pytest.mark.parametrize("way", WAYS)
def test_c10_a_graph_dropped_while_it_replays_ends_its_replay(way: str) -> None:
    script = EVICTED.replace("(CALL)", "(call)").replace("WAY", f"({WAYS[way]})")
    lines = [line.strip() if not line.startswith("        ") else line[4:] for line in script.splitlines()]
    alone(CALL + "\n".join(lines))


STORM = """
import random, time
f = lambda x, w: torch.tanh(x @ w).exp() + x
g = WAY(f)
stop = time.monotonic() + 4
bad = []
def work(seed):
    torch.set_num_threads(1)
    r = random.Random(seed)
    while time.monotonic() < stop and not bad:
        x, w = torch.randn(r.randint(1, 9), 16), torch.randn(16, 16)
        try:
            if not torch.equal(g(x, w), f(x, w)): bad.append("other bits")
        except BaseException as error:
            bad.append(repr(error))
for n in range(1, 10): g(torch.randn(n, 16), torch.randn(16, 16))
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not bad, bad
"""


@pytest.mark.parametrize("way", WAYS)
def test_c10_threads_may_evict_each_other_s_graphs(way: str) -> None:
    options = {"torch": "options={'max_graphs': 3}", "graphmode": "max_graphs=3"}[way]
    call = WAYS[way].replace("backend='graphmode'", f"backend='graphmode', {options}")
    alone(STORM.replace("WAY", f"({call})" if way == "torch" else f"(lambda f: graphmode.compile(f, {options}))"))


FORK = """
torch.set_num_threads(THREADS)
f = lambda x: torch.exp(x) * 2 + 1
g = WAY(f)
x, y = torch.randn(200_000), torch.zeros(200_000)  # made here: with two threads eager itself hangs in the child
for _ in range(5): g(x)
pid = os.fork()
if pid == 0:
    import signal
    signal.alarm(10)
    try:
        result = g(y)
        torch.set_num_threads(1)
        right = bool((result == 3).all())
    except graphmode.GraphModeError:
        right = True
    os._exit(0 if right else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert code == 0, f"the child ended with {code}"
assert torch.equal(g(x), f(x))
"""


@pytest.mark.parametrize("way", WAYS)
def test_c10_a_forked_child_may_call(way: str) -> None:
    alone(FORK.replace("THREADS", "1").replace("WAY", f"({WAYS[way]})"))


def test_c10_a_fork_is_detected_where_eager_s_own_threads_would_hang() -> None:
    alone(FORK.replace("THREADS", "2").replace("WAY", f"({WAYS['torch']})"))


def test_c10_reset_by_another_thread_is_seen_by_the_next_call() -> None:
    g = graphmode.compile(lambda x: torch.exp(x))
    for _ in range(4):
        g(torch.ones(3))
    thread = threading.Thread(target=graphmode.reset)
    thread.start()
    thread.join()
    with replayed(1):
        for _ in range(4):
            assert_same(g(torch.zeros(3)), torch.ones(3))
