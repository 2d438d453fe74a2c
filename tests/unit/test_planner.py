"""The planner: lifetimes in, offsets out. Owns its invariants, on random lifetimes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from graphmode._C import place

Lifetime = tuple[int, int, int]


def aligned(n: int) -> int:
    return (n + 63) // 64 * 64


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    found = []
    for _ in range(draw(st.integers(0, 40))):
        first = draw(st.integers(0, 30))
        found.append(
            (draw(st.sampled_from([0, 1, 63, 64, 65, 640, 4096, 100_000])), first, first + draw(st.integers(0, 12)))
        )
    return found


def peak(given_: list[Lifetime]) -> int:
    """The largest sum of bytes in use at one moment."""
    moments = {t for _, first, last in given_ for t in (first, last)}
    return max((sum(aligned(b) for b, first, last in given_ if first <= t <= last) for t in moments), default=0)


@settings(max_examples=300)
@given(lifetimes())
def test_buffers_alive_together_never_overlap(given_: list[Lifetime]) -> None:
    offsets, _ = place(given_)
    placed = [(o, o + b, first, last) for o, (b, first, last) in zip(offsets, given_, strict=True) if b]
    for i, (lo, hi, first, last) in enumerate(placed):
        for other_lo, other_hi, other_first, other_last in placed[:i]:
            together = first <= other_last and other_first <= last
            assert not together or hi <= other_lo or other_hi <= lo


@settings(max_examples=300)
@given(lifetimes())
def test_offsets_are_aligned_and_inside_the_total(given_: list[Lifetime]) -> None:
    offsets, total = place(given_)
    assert len(offsets) == len(given_)
    assert all(o >= 0 and o % 64 == 0 for o in offsets) and total % 64 == 0
    assert all(o + b <= total for o, (b, _, _) in zip(offsets, given_, strict=True))


@settings(max_examples=300)
@given(lifetimes())
def test_the_total_is_between_the_peak_and_the_sum(given_: list[Lifetime]) -> None:
    _, total = place(given_)
    assert peak(given_) <= total <= sum(aligned(b) for b, _, _ in given_)


@settings(max_examples=100)
@given(lifetimes())
def test_equal_lifetimes_give_equal_plans(given_: list[Lifetime]) -> None:
    assert place(given_) == place(list(given_))


def test_nothing_takes_nothing() -> None:
    assert place([]) == ([], 0)


def test_a_chain_takes_two_buffers() -> None:
    assert place([(1000, i, i + 1) for i in range(50)])[1] == 2 * 1024


def test_the_smaller_of_both_orders_is_kept() -> None:
    """By size alone these take 640 bytes more: a small one that lives long parts the large ones."""
    assert place([(640, 0, 1), (64, 1, 3), (640, 2, 3)])[1] == 704
    assert place([(640, 0, 0), (640, 1, 1), (640, 2, 2)])[1] == 640
