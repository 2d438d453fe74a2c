"""What equals what: inputs at other addresses, offsets, strides, and sharing memory in other ways than at capture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from .ways import Way, assert_same, both_ways, counted, replayed

OFFSETS = [0, 0, 0, 0, 4, 8, 4, 0]
READS: dict[str, Callable[[Tensor], Tensor]] = {
    "values": lambda x: torch.exp(x) * 2,
    "a view": lambda x: x[1:].flip(0) + x.view(2, 2)[1, 1],
    "as_strided, its own offset": lambda x: x.as_strided((2,), (2,)) * 2,
    "as_strided, an absolute offset": lambda x: x.as_strided((2,), (1,), 0) * 2,
    "as_strided_copy": lambda x: torch.as_strided_copy(x, (2,), (1,), 0) * 2,
    "view as another dtype": lambda x: x.view(torch.float64) + 1,
    "the offset as a number": lambda x: x + x.storage_offset(),
    "a returned view": lambda x: x[2:],
    "a returned as_strided": lambda x: x.as_strided((2,), (1,), 1),
}


@both_ways()
@pytest.mark.parametrize("name", READS)
def test_inputs_at_other_storage_offsets(way: Way, name: str) -> None:
    f = READS[name]
    g, base = way(f), torch.arange(16.0)
    for offset in OFFSETS:
        x = base[offset : offset + 4]
        got, want = g(x), f(x)
        assert_same(got, want)
        if "returned" in name:
            assert got.storage_offset() == want.storage_offset() and got.data_ptr() == want.data_ptr()


@both_ways()
def test_a_view_beyond_a_smaller_storage_raises_as_in_eager(way: Way) -> None:
    f = lambda x: x.as_strided((4,), (1,), 0) * 2  # noqa: E731
    g, base = way(f), torch.arange(8.0)
    for _ in range(5):
        assert_same(g(base[:2]), f(base[:2]))
    with pytest.raises(RuntimeError):
        g(torch.ones(2))


@both_ways()
@pytest.mark.parametrize("returned", [True, False])
def test_a_dtype_view_at_a_misaligned_offset_raises_as_in_eager(way: Way, returned: bool) -> None:
    f = lambda x: x.view(torch.float64) if returned else x.view(torch.float64) + 1  # noqa: E731
    g, base = way(f), torch.arange(16.0)
    for offset in (0, 0, 0, 0, 2, 4):
        assert_same(g(base[offset : offset + 4]), f(base[offset : offset + 4]))
    with pytest.raises(RuntimeError):
        g(base[1:5])


def overlaps(base: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return {
        "apart": (base[:4], base[8:12]),
        "the same object": (base[:4],) * 2,
        "the same memory": (base[:4], base[:4]),
        "shifted": (base[:4], base[2:6]),
        "shifted back": (base[2:6], base[:4]),
        "interleaved": (base[:8:2], base[1:9:2]),
        "row and column": (base[:16].view(4, 4)[0], base[:16].view(4, 4)[:, 0]),
        "reversed roles": (base[8:12], base[:4]),
    }[kind]


KINDS = ["apart", "the same object", "the same memory", "shifted", "shifted back", "interleaved", "row and column",
         "reversed roles"]  # fmt: skip
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "first, then read": lambda a, b: (a.mul_(2), b + 1),
    "both": lambda a, b: (a.add_(1), b.mul_(3), a - b),
    "read, then write": lambda a, b: (b * 2, a.zero_(), b.sum()),
    "neither": lambda a, b: (a + b, a[1:], b[1:]),
}


@both_ways()
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("seed", [0, 1])
def test_inputs_that_share_memory_in_changing_ways(way: Way, name: str, seed: int) -> None:
    g = way(WRITES[name])
    order = torch.randperm(4 * len(KINDS), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    with replayed(4):
        for i in order:
            mine, eager = torch.arange(20.0), torch.arange(20.0)
            want = WRITES[name](*overlaps(eager, KINDS[i // 4]))
            assert_same(g(*overlaps(mine, KINDS[i // 4])), want, KINDS[i // 4])
            assert_same(mine, eager, f"memory behind {KINDS[i // 4]}")


@both_ways()
def test_overlap_that_no_storage_object_shows(way: Way) -> None:
    """Two tensors over one NumPy array: two storages, one memory."""

    def run(f: Callable[..., object], array: np.ndarray) -> object:
        return f(torch.from_numpy(array[:4]), torch.from_numpy(array[2:6]))

    f = lambda a, b: (a.add_(1), b * 2)  # noqa: E731
    g = way(f)
    for i in range(8):
        mine, eager = np.arange(8.0), np.arange(8.0)
        if i % 2:
            assert_same(run(g, mine), run(f, eager))
            assert_same(mine.tolist(), eager.tolist())
        else:
            assert_same(g(torch.arange(4.0), torch.arange(4.0)), f(torch.arange(4.0), torch.arange(4.0)))


@both_ways()
def test_overlap_that_no_storage_object_shows_is_not_captured_over_and_over(way: Way) -> None:
    g = way(lambda a, b: (a.add_(1), b * 2))
    with counted() as since:
        for _ in range(16):
            array = np.arange(8.0)
            g(torch.from_numpy(array[:4]), torch.from_numpy(array[2:6]))
    assert since.captures <= 2 and since.graphs <= 2
    assert since.replays + since.live_calls >= 12


@both_ways()
def test_inputs_with_zero_strides_no_elements_and_no_dimensions(way: Way) -> None:
    f = lambda x: (x * 2, x.sum(), x.reshape(-1))  # noqa: E731
    g = way(f)
    forms = [
        torch.randn(1).expand(4),
        torch.empty(0),
        torch.tensor(2.0),
        torch.randn(4, 0),
        torch.randn(1, 1).expand(3, 4),
    ]
    with replayed(5):
        for x in forms * 4:
            assert_same(g(x), f(x))


@both_ways()
def test_conjugated_and_negated_inputs(way: Way) -> None:
    f = lambda x: (x * 2, x.real + 1, torch.view_as_real(x.resolve_conj()))  # noqa: E731
    g = way(f)
    for i in range(9):
        x = torch.randn(3, dtype=torch.complex64)
        x = [x, x.conj(), x.conj().conj()][i % 3]
        assert_same(g(x), f(x))
