"""Timed blocks and the few statistics made from them: median, p90, slope.

Knows nothing of models or peers. A block is one clock reading around many calls, so the clock costs nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

BLOCK_NS = 30_000_000


def block(fn: Callable[..., Any], inputs: Sequence[Any], calls: int) -> float:
    """Nanoseconds per call of `fn(*inputs)` over one block of `calls` calls."""
    start = time.perf_counter_ns()
    for _ in repeat(None, calls):
        fn(*inputs)
    return (time.perf_counter_ns() - start) / calls


def calls_for(fn: Callable[..., Any], inputs: Sequence[Any], target_ns: int, limit: int) -> int:
    """How many calls fill `target_ns`, between 1 and `limit`."""
    calls = 1
    while (per_call := block(fn, inputs, calls)) * calls < target_ns / 8 and calls * 8 <= limit:
        calls *= 8
    return max(1, min(limit, round(target_ns / per_call)))


class Stopwatch:
    seconds = 0.0


@contextmanager
def stopwatch() -> Iterable[Stopwatch]:
    """`with stopwatch() as watch: ...` then `watch.seconds`."""
    watch = Stopwatch()
    start = time.perf_counter()
    try:
        yield watch
    finally:
        watch.seconds = time.perf_counter() - start


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(fraction * 1000) * len(ordered) // 1000) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def p90(values: Sequence[float]) -> float:
    return percentile(values, 0.9)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of y over x."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
