"""What selects a graph: equal keys for calls that one graph serves, other keys for all else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphmode import _C
from graphmode.devices.adapter import device_named
from graphmode.runtime.signature import not_capturable, signature_of

BASE = torch.arange(32.0)


def other_values() -> list[Any]:
    return [torch.randn(4, 4), 3]


SAME: list[list[Any]] = [[torch.zeros(4, 4), 3], [BASE[:16].view(4, 4), 3], [BASE[16:].view(4, 4), 3]]
OTHER: dict[str, list[Any]] = {
    "size": [torch.randn(4, 5), 3],
    "rank": [torch.randn(4, 4, 1), 3],
    "strides": [torch.randn(4, 4).t(), 3],
    "dtype": [torch.randn(4, 4).double(), 3],
    "number": [torch.randn(4, 4), 4],
    "kind of number": [torch.randn(4, 4), True],
    "type": [torch.nn.Parameter(torch.randn(4, 4)), 3],
    "math bits": [torch.randn(4, 4, dtype=torch.complex64).conj().imag, 3],
}


@pytest.mark.parametrize("args", SAME)
def test_values_and_addresses_do_not_matter(args: list[Any]) -> None:
    assert signature_of(args) == signature_of(other_values())


@pytest.mark.parametrize("name", OTHER)
def test_what_a_graph_depends_on_does(name: str) -> None:
    assert signature_of(OTHER[name]) != signature_of(other_values())


def test_conjugation_and_inference_matter() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    assert signature_of([z]) != signature_of([z.conj()])
    with torch.inference_mode():
        x = torch.zeros(3)
        inside = signature_of([x])
    assert inside != signature_of([x]) != signature_of([torch.zeros(3)])


def test_aliasing_matters_but_not_where_the_pair_lies() -> None:
    def pair(at: int, distance: int) -> list[Any]:
        return [BASE[at : at + 4], BASE[at + distance : at + distance + 4]]

    assert signature_of(pair(0, 2)) == signature_of(pair(8, 2))
    assert signature_of(pair(0, 2)) != signature_of(pair(0, 3)) != signature_of([BASE[:4], BASE[:4].clone()])


def test_modes_are_in_the_signature() -> None:
    seen = {_C.mode_bits()}
    before = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        seen.add(_C.mode_bits())
    torch.set_num_threads(before)
    with torch.inference_mode():
        seen.add(_C.mode_bits())
    torch.use_deterministic_algorithms(True)
    seen.add(_C.mode_bits())
    torch.use_deterministic_algorithms(False)
    with torch.backends.mkldnn.flags(enabled=False):
        seen.add(_C.mode_bits())
    assert len(seen) == 5


def test_default_dtypes_are_told_apart() -> None:
    seen = set()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(dtype)
        seen.add(_C.mode_bits())
    torch.set_default_dtype(torch.float32)
    assert len(seen) == 4


class Sub(torch.Tensor):
    """A subclass that dispatches nothing itself."""


def test_what_no_graph_can_take_is_named() -> None:
    assert (
        not_capturable(device_named("cpu"), [torch.zeros(3), 4, torch.zeros(3).as_subclass(Sub), torch.zeros(3).t()])
        is None
    )
    for bad, says in [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, device="meta"), "meta"),
        (0.5, "float"),
        (None, "NoneType"),
        ("x", "str"),
    ]:
        reason = not_capturable(device_named("cpu"), [torch.zeros(3), bad])
        assert reason is not None and says in reason and "1" in reason
