"""The suite can fail: one that returns the graph's own forward or replays old values does not pass it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx

from . import test_c01_bits as c1
from . import test_c02_in_place as c2
from . import test_c03_outputs as c3
from . import test_c04_weights as c4
from . import test_c05_random as c5
from . import test_c06_breaks as c6
from . import test_equals_inputs as inputs
from .ways import Way, by_graphmode_compile, by_torch_compile

Check = Callable[[Way], None]
CHECKS: dict[str, Check] = {
    "C1": lambda way: c1.test_c1_a_net_gives_eager_s_bits(way, torch.float32),
    "C2": c2.test_c2_a_cache_is_written_where_it_lies,
    "C3": c3.test_c3_twelve_held_outputs_never_change,
    "C4": lambda way: c4.test_c4_a_changed_weight_is_seen_by_the_next_call(way, c4.new_parameter),
    "C5": lambda way: c5.test_c5_seeded_alike_draws_alike(way, "dropout"),
    "C6": lambda way: c6.test_c6_an_opaque_op_runs_once_at_each_call(way, True),
    "offsets": lambda way: inputs.test_inputs_that_share_memory_in_changing_ways(way, "both", 0),
}


def backend_of(make: Callable[[fx.GraphModule], Callable[..., Any]]) -> Way:
    return lambda f, **_: torch.compile(f, backend=lambda gm, _inputs: make(gm))


def forward_only(gm: fx.GraphModule) -> Callable[..., Any]:
    return gm.forward


def old_values(gm: fx.GraphModule) -> Callable[..., Any]:
    first: list[Any] = []

    def run(*args: Any) -> Any:
        if not first:
            first.append(gm(*args))
        return first[0]

    return run


def on_copies(gm: fx.GraphModule) -> Callable[..., Any]:
    return lambda *args: gm(*[a.clone() if isinstance(a, torch.Tensor) else a for a in args])


@pytest.mark.parametrize("way", [by_torch_compile, by_graphmode_compile])
@pytest.mark.parametrize("name", CHECKS)
def test_graphmode_passes(name: str, way: Way) -> None:
    CHECKS[name](way)


@pytest.mark.parametrize("name", CHECKS)
def test_the_graph_s_own_forward_fails(name: str) -> None:
    with pytest.raises(AssertionError, match="no replay"):
        CHECKS[name](backend_of(forward_only))


@pytest.mark.parametrize("name", CHECKS)
def test_old_values_fail(name: str) -> None:
    with pytest.raises(AssertionError, match="differs"):
        CHECKS[name](backend_of(old_values))


@pytest.mark.parametrize("name", ["C2", "offsets"])
def test_writes_to_copies_fail(name: str) -> None:
    with pytest.raises(AssertionError, match=r"differs|data_ptr"):
        CHECKS[name](backend_of(on_copies))
