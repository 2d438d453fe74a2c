"""What counts as equal to eager, bit by bit; and that copies of inputs keep what a program can see.

Owns the tests of compare.py, storage.py and samples.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from .compare import Outcome, compare, same_values
from .families import large_cases
from .samples import CALLS, cases
from .storage import clone_group, overwrite, same_layout
from .sweep import OPS


def _kinds(want: object, got: object, **options: bool) -> list[str]:
    state = torch.get_rng_state()
    return [d.kind for d in compare(Outcome(want, [], state), Outcome(got, [], state), **options)]


def _from_bits(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


X = torch.arange(6.0).reshape(2, 3)

UNEQUAL: list[tuple[object, object, str]] = [
    (X, X + torch.eye(2, 3) * 1e-6, "values"),
    (torch.tensor([0.0]), torch.tensor([-0.0]), "values"),
    (torch.tensor([float("nan")]), torch.tensor([0.0]), "values"),
    (X, X.double(), "dtype"),
    (X, X.reshape(3, 2), "shape"),
    (X, X.t().contiguous().t(), "strides"),
    (X, X.to_sparse(), "layout"),
    (torch.ones(2, dtype=torch.cfloat), torch.ones(2, dtype=torch.cfloat).conj(), "lazy bits"),
    (X, torch.nn.Parameter(X.clone(), requires_grad=False), "type"),
    ([X, X.clone()], [X, X], "alias"),
    ([X, X], [X, X.clone()], "alias"),
    ((X,), [X], "structure"),
    ([X], [X, X], "structure"),
    (2, 3, "values"),
    (2, True, "structure"),
]


@pytest.mark.parametrize(("want", "got", "kind"), UNEQUAL)
def test_a_difference_has_its_kind(want: object, got: object, kind: str) -> None:
    assert kind in _kinds(want, got)
    assert _kinds(want, want) == []


def test_any_nan_equals_any_nan() -> None:
    assert _kinds(_from_bits(0x7FC00000, 1), _from_bits(0x7FC00001, 1)) == []
    assert _kinds(_from_bits(0x7FC00000, 1), _from_bits(0x7FC00001, 2)) == ["values"]


def test_an_output_in_another_place_of_its_input_differs() -> None:
    state, x = torch.get_rng_state(), torch.zeros(4)
    head, tail = Outcome(x[:2], [x], state), Outcome(x[2:], [x], state)
    assert [d.kind for d in compare(head, tail)] == ["alias"]
    assert compare(head, head) == []


def test_a_mutated_input_and_a_generator_are_compared() -> None:
    state, x = torch.get_rng_state(), torch.zeros(4)
    assert [d.kind for d in compare(Outcome(1, [x], state), Outcome(1, [x + 1], state))] == ["mutation"]
    other = state.clone()
    other[-1] ^= 1
    assert [d.kind for d in compare(Outcome(1, [], state), Outcome(1, [], other))] == ["rng"]


def test_clones_share_what_the_originals_shared() -> None:
    base = torch.arange(12.0).to(torch.cfloat).reshape(3, 4)
    group = [base, base[1:, ::2], base.conj(), torch.ones(3)]
    twins = clone_group(group)
    assert same_layout(group, twins) and same_values(group, twins)
    twins[0].zero_()
    assert not twins[1].any() and not twins[2].any() and twins[3].all() and base.any()
    overwrite(twins, group)
    assert same_values(group, twins)


@pytest.mark.parametrize("name", ["add", "gather", "linalg.cholesky", "nn.functional.embedding", "acos", "all"])
@pytest.mark.parametrize("tag", ["fp32", "bf16"])
def test_every_call_has_values_of_its_own(name: str, tag: str) -> None:
    found = [*cases(OPS[name], tag), *large_cases(OPS[name], tag)]
    full = [case for case in found if any(t.numel() > 1 for t in case.values[0])]
    for case in full:
        assert len(case.values) == CALLS
        for a, b in itertools.combinations(case.values, 2):
            assert same_layout(a, b) and not same_values(a, b), case.name
    assert full or name == "linalg.cholesky"
