"""Random programs against eager: results, memory behind the arguments, generator, aliasing, outputs held.

Derandomised: the same programs at each run. Values, sizes, strides, offsets and shared memory change between calls.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

import graphmode

from .random_programs import Form, forms, function_of, programs
from .ways import Way, assert_same, both_ways, rng_state

CALLS = 4  # per form, in turns
bounded = settings(
    max_examples=25, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
)


def places(results: tuple[Tensor, ...], memory: list[Tensor]) -> list[tuple[int, int] | None]:
    """For each result, which argument's memory it lies in and where, if in one."""
    found: list[tuple[int, int] | None] = []
    for r in results:
        owners = [i for i, m in enumerate(memory) if m.untyped_storage().data_ptr() == r.untyped_storage().data_ptr()]
        found.append((owners[0], r.storage_offset()) if owners else None)
    return found


def compare(way: Way, source: str, drawn: list[Form]) -> int:
    """Calls the program on each form in turn; returns the number of replays."""
    f = function_of(source)
    usable = []
    for form in drawn:
        try:
            f(*form.arguments(0)[1])
            usable.append(form)
        except RuntimeError:  # a write onto shared or expanded memory that eager refuses
            continue
    assume(usable)
    torch._dynamo.reset()
    graphmode.reset()
    g = way(f)
    held = []
    for call in range(CALLS):
        for form in usable:
            mine, given_mine = form.arguments(call)
            eager, given_eager = form.arguments(call)
            torch.manual_seed(call)
            want = f(*given_eager)
            after = rng_state()
            torch.manual_seed(call)
            got = g(*given_mine)
            note(f"call {call} of {form}")
            assert_same(got, want)
            assert_same(mine, eager, "memory behind the arguments")
            assert torch.equal(rng_state(), after), "generator differs"
            assert places(got, mine) == places(want, eager), "aliasing differs"
            held.append((got, want, mine, eager))
    for got, want, mine, eager in held:
        assert_same(got, want, "a held result")
        assert_same(mine, eager, "memory behind held arguments")
    return graphmode.report().replays


@both_ways()
def test_random_programs_do_what_eager_does(way: Way) -> None:
    replays = []

    @bounded
    @given(programs(), st.lists(forms(), min_size=1, max_size=3))
    def run(source: str, drawn: list[Form]) -> None:
        note(source)
        with torch.no_grad():
            replays.append(compare(way, source, drawn))

    run()
    assert sum(1 for n in replays if n > 0) > 0.6 * len(replays)
