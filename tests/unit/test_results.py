"""Templates: how the user's result is made of the graph's results."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from graphmode.runtime.results import NoTemplate, template

A, B, X = torch.zeros(1), torch.ones(1), torch.ones(2)
Pair = namedtuple("Pair", "left right")


def test_results_arguments_and_constants_are_told_apart() -> None:
    value = {"a": A, "n": 3, "l": [B, (X, None)], "t": torch.float32}
    shape, rebuild = template(value, [A, B], [X], [])
    assert rebuild is None
    wanted = [("item", 0), ("constant", 3), ("list", [("item", 1), ("tuple", [("leaf", 0), ("constant", None)])]),
              ("constant", torch.float32)]  # fmt: skip
    assert shape == ("dict", ("a", "n", "l", "t"), wanted)


def test_one_tensor_alone() -> None:
    assert template(A, [A], [], []) == (("item", 0), None)
    assert template(X, [A], [X], []) == (("leaf", 0), None)
    assert template((), [A], [], [])[0] == ("tuple", [])


def test_a_named_tuple_is_rebuilt_in_python() -> None:
    shape, rebuild = template(Pair(A, 3), [A], [], [])
    assert shape is None and rebuild is not None
    made = rebuild((B,))
    assert type(made) is Pair and made.left is B and made.right == 3


def test_a_tensor_that_is_no_result_has_no_template() -> None:
    for value in (X, (A, X), {"k": X}, Pair(A, X)):
        with pytest.raises(NoTemplate, match="no result"):
            template(value, [A], [], [])


@dataclass
class Own:
    y: torch.Tensor


def test_an_object_of_the_user_s_has_no_template() -> None:
    for value in (Own(A), [Own(A)], {1, 2}):
        with pytest.raises(NoTemplate):
            template(value, [A], [], [])


def test_an_argument_s_own_container_has_no_template() -> None:
    taken = [A]
    with pytest.raises(NoTemplate, match="argument"):
        template(taken, [A], [A], [taken])
    with pytest.raises(NoTemplate, match="argument"):
        template((A, taken), [A], [A], [taken])
    assert template([A], [A], [A], [taken])[0] == ("list", [("item", 0)])
