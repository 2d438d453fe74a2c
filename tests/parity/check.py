"""Runs one case through one driver beside eager, and says how it ended.

Owns the verdict; a case ends in exactly one of the kinds below.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .compare import Difference, Outcome, compare, same_values
from .garbage import allocator_fills_with
from .samples import CALLS, Case, rng_state, seed_everything, synchronize, waits_for_the_device
from .session import Driver, Refused, Session, Tally
from .storage import clone_group

REPLAYED = "replayed"
COUNTED = "counted"  # ran outside a graph, and the reason was counted
REFUSED = "refused"  # a raw graph said why it cannot capture
NO_GRAPH = "no graph"  # Dynamo handed no graph to the backend
NO_REFERENCE = "no reference"  # eager raises
LISTED = "listed"  # differs, as exceptions.py says
PASSING = (REPLAYED, COUNTED, REFUSED, NO_GRAPH, NO_REFERENCE, LISTED)

SILENT = "silent"  # neither a replay nor a reason
NOT_REPLAYED = "not replayed"  # a reason was counted, but this family must be captured
RAISED = "raised"
CHANGED_LATER = "changed later"  # an output was right, and a later call changed it


@dataclass
class Result:
    """How one case ended. `sensitive`: eager's results differ between the replays, a stale one would show."""

    op: str
    dtype: str
    label: str
    kind: str
    detail: str = ""
    replays: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    sensitive: bool = False
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.kind in PASSING

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


def run_case(case: Case, driver: Driver, *, must_replay: bool = False, listed: bool = False) -> Result:
    """All calls of one case. `listed`: the values of its outputs are known not to be reproducible."""
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with torch.set_grad_enabled(driver.grad_mode):
            result = _run(case, driver, must_replay, listed)
    finally:
        torch.set_num_threads(threads)
    result.seconds = round(time.perf_counter() - began, 4)
    return result


def _run(case: Case, driver: Driver, must_replay: bool, listed: bool) -> Result:
    result = Result(case.op, case.dtype, case.label, REPLAYED)
    try:
        with allocator_fills_with(0x35):
            wanted = [_eager(case, number) for number in range(CALLS)]
    except Exception as error:
        return _ended(result, NO_REFERENCE, f"{type(error).__name__}: {error}")
    replays = wanted[-2:]
    result.sensitive = not all(
        same_values(getattr(replays[0], f), getattr(replays[1], f)) for f in ("result", "inputs")
    )
    session: Session | None = None
    try:
        session = driver.start(case)
        with allocator_fills_with(0xC2):
            difference = _first_difference(case, session, wanted, listed)
        tally = session.tally()
    except Refused as refused:
        result.reasons = {str(refused).partition("\n")[0]: 1}
        return _after_refusal(result, case, wanted[0], listed, str(refused))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _ended(result, RAISED, f"{type(error).__name__}: {error} [{where.filename}:{where.lineno}]")
    finally:
        if session is not None:
            session.close()
    result.replays = tally.replays
    result.reasons = dict(tally.reasons or tally.dynamo_reasons)
    if difference is not None:
        return _ended(result, difference.kind, difference.detail)
    kind, detail = _account(tally, must_replay)
    refused_a_wait = all("synchronize" in reason for reason in tally.reasons)
    if kind == NOT_REPLAYED and refused_a_wait and waits_for_the_device(lambda: case.call(clone_group(case.values[0]))):
        kind = COUNTED
    return _ended(result, kind, detail)


def _account(tally: Tally, must_replay: bool) -> tuple[str, str]:
    if tally.replays:
        return REPLAYED, ""
    if tally.graphs == 0:
        return NO_GRAPH, ", ".join(tally.dynamo_reasons)
    reasons = ", ".join(tally.reasons)
    if not reasons:
        return SILENT, "no replay, and no reason was counted"
    return (NOT_REPLAYED, reasons) if must_replay else (COUNTED, reasons)


def _first_difference(case: Case, session: Session, wanted: list[Outcome], listed: bool) -> Difference | None:
    held = []
    values_differ: Difference | None = None
    for number, want in enumerate(wanted):
        got = _observe(case, number, session.call)
        for found in compare(want, got, structure=not session.flat_outputs):
            named = Difference(found.kind, f"call {number + 1}: {found.detail}")
            if not (listed and found.kind == "values"):
                return named
            values_differ = Difference(LISTED, named.detail)
        held.append(got.result)
    if session.keeps_outputs and not listed:
        for number, (want, result) in enumerate(zip(wanted, held, strict=True)):
            if not same_values(want.result, result):
                return Difference(CHANGED_LATER, f"the output of call {number + 1} changed after it was returned")
    return values_differ


def _eager(case: Case, number: int) -> Outcome:
    return _observe(case, number, lambda tensors: (case.call(tensors), tensors))


def _observe(case: Case, number: int, call: Callable[[list[Any]], tuple[object, list[Any]]]) -> Outcome:
    tensors = clone_group(case.values[number])
    seed_everything(5000 + number)
    result, inputs = call(tensors)
    synchronize()  # an error of the device's is this call's
    return Outcome(result, inputs, rng_state())


def _after_refusal(result: Result, case: Case, want: Outcome, listed: bool, reason: str) -> Result:
    # A refused capture must leave eager as it was.
    if broken := compare(want, _eager(case, 0), values=not listed):
        return _ended(result, RAISED, f"after a refused capture ({reason}) eager differs: {broken[0].detail}")
    return _ended(result, REFUSED, reason)


def _ended(result: Result, kind: str, detail: str) -> Result:
    result.kind, result.detail = kind, detail[:400]
    return result
