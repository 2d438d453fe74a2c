"""C2: in-place updates happen in place, and no copy of a whole buffer appears that eager did not make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graphmode
from graphmode.inspect.counters import ledger
from graphmode.runtime.region import Region

from .ways import Way, assert_same, beside_eager, both_ways, replayed


class Cache(nn.Module):
    """One layer's KV cache, as a static cache keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 64, 8))

    def forward(self, position: Tensor, key: Tensor) -> Tensor:
        self.keys.index_copy_(1, position, key)
        return (self.keys * 2).sum(1)


@both_ways()
def test_c2_a_cache_is_written_where_it_lies(way: Way) -> None:
    mine, eager = Cache(), Cache()
    g, address = way(mine), mine.keys.data_ptr()
    with torch.no_grad(), replayed(5):
        for i in range(8):
            args = torch.tensor([i]), torch.randn(2, 1, 8)
            assert_same(g(*args), eager(*args))
    assert mine.keys.data_ptr() == address
    assert_same(mine.keys, eager.keys)


def captured_calls() -> list[str]:
    regions: list[Region] = list(ledger.regions())
    dumps = [g.debug_dump() for r in regions for g in r.graphs.values()]
    return [line for d in dumps for line in d.splitlines()]


@pytest.mark.cpu("it counts the arena's bytes; a device's pool grows in blocks of the allocator")
@both_ways()
def test_c2_no_whole_buffer_copy_appears(way: Way) -> None:
    g = way(Cache())
    with torch.no_grad(), replayed(2):
        for i in range(4):
            g(torch.tensor([i]), torch.randn(2, 1, 8))
    lines = captured_calls()
    assert any("index_copy_" in line for line in lines)
    assert not any(("copy_(" in line and "index_copy_" not in line) or "clone" in line for line in lines)
    held = graphmode.report().bytes
    assert held.arena < 2 * 2 * 64 * 8 * 4 + 1024  # the product and its sum, not the cache besides


@both_ways()
def test_c2_inputs_and_views_of_inputs_are_written_in_place(way: Way) -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        x[0].mul_(2)
        x.t()[1] = 7
        y.narrow(0, 0, 1).copy_(x.sum(0, keepdim=True))
        return x

    with replayed(4):
        g = beside_eager(way, f, [(torch.randn(3, 4), torch.randn(3, 4)) for _ in range(6)])
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    assert g(x, y) is x


@both_ways()
@pytest.mark.parametrize("inside", [False, True])
def test_c2_an_augmented_assignment_to_an_item(way: Way, inside: bool) -> None:
    """`x[i] += 1` copies a view onto itself."""

    def f(x: Tensor) -> Tensor:
        y = x * 2 if inside else x
        y[:, 0] += 1
        y[1] *= 3
        return y + 0

    with replayed(3):
        beside_eager(way, f, [(torch.randn(3, 4),) for _ in range(5)])


@both_ways()
def test_c2_a_view_handed_in_writes_its_base(way: Way) -> None:
    base, eager = torch.zeros(5, 4), torch.zeros(5, 4)
    g = way(lambda row: row.add_(1))
    with replayed(5):
        for i in range(8):
            g(base[i % 5])
            eager[i % 5].add_(1)
    assert_same(base, eager)


@both_ways()
def test_c2_batch_norm_writes_its_running_statistics(way: Way) -> None:
    mine, eager = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    g = way(mine)
    addresses = [b.data_ptr() for b in mine.buffers()]
    with torch.no_grad(), replayed(4):
        for _ in range(6):
            x = torch.randn(8, 4)
            assert_same(g(x), eager(x))
            assert_same(dict(mine.named_buffers()), dict(eager.named_buffers()))
    assert [b.data_ptr() for b in mine.buffers()] == addresses
