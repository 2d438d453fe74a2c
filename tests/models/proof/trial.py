"""Runs one case in eager and compiled, and says whether they were the same.

The verdict can fail: equal outputs alone prove nothing. A row also needs values that change from call to call
and, where the backend keeps counters, at least one replay or one counted reason.
"""

import copy
import gc
import os
import random
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from zoo.case import Case, Forward

from .row import Row, Verdict
from .snapshot import Snapshot, difference, module_state, moved

DEVICE = torch.device(os.environ.get("GRAPHMODE_TEST_DEVICE", "cpu"))  # models and inputs are made on the CPU
Report = Callable[[], Any]
BRANCHES = "the model takes another branch when compiled, on which eager gives these bits"


@dataclass
class Observation:
    """One snapshot after each call, and one of all outputs, still held by the caller, after the last call."""

    calls: list[Snapshot]
    held: Snapshot
    seconds: float


def observe(case: Case, model: nn.Module, forward: Forward) -> Observation:
    """Makes the case's calls through `forward`, which runs `model`, and keeps every output until the end."""
    drive, snapshots, held, seconds = case.drive(model), [], [], 0.0
    with torch.inference_mode() if case.inference_mode else torch.no_grad():
        for step in range(case.calls):
            with torch.inference_mode(False):
                args, kwargs = tree_map_only(Tensor, lambda t: t.to(DEVICE), case.inputs(step))
            _seed(case.seed + step)
            start = time.perf_counter()
            outputs = drive(forward, args, kwargs)
            seconds += time.perf_counter() - start
            held.append(outputs)
            after = Snapshot.take(
                outputs=outputs,
                arguments=(args, kwargs),
                state=module_state(model),
                random=[torch.get_rng_state(), *_generator_states()],
            )
            snapshots.append(after)
    return Observation(snapshots, Snapshot.take(outputs=held), seconds)


def synchronize() -> None:
    """Waits for the device, which raises what a task of it raised."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def _generator_states() -> list[Tensor]:
    return [] if DEVICE.type == "cpu" else [torch.get_device_module(DEVICE).get_rng_state()]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def compare(expected: Observation, got: Observation) -> str | None:
    """The first difference between two observations, in words."""
    for step, (want, have) in enumerate(zip(expected.calls, got.calls, strict=True)):
        if said := difference(want, have):
            return f"call {step}: {said}"
    said = difference(expected.held, got.held)
    return said and f"outputs held until the last call: {said}"


def trial(case: Case, backend: Any, report: Report | None = None) -> Row:
    """The row of `case` under `torch.compile(backend=backend)`; `report` reads the backend's counters."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    row = Row(case.name, case.family)
    start = time.perf_counter()
    try:
        _judge(case, backend, report, row)
    except Exception as error:
        row.verdict = Verdict.FAILED
        row.detail = f"{type(error).__name__}: {error}".strip()
        row.traceback = traceback.format_exc()
    row.seconds = time.perf_counter() - start
    return row


def _judge(case: Case, backend: Any, report: Report | None, row: Row) -> None:
    model = case.build().to(DEVICE)
    row.model_type = getattr(getattr(model, "config", None), "model_type", "")
    try:
        reference = _observe_copy(case, model, lambda forward: forward)
        synchronize()
    except Exception as error:
        row.verdict, row.detail = Verdict.EAGER_FAILED, f"{type(error).__name__}: {error}".strip()
        return
    if said := compare(reference, _observe_copy(case, model, lambda forward: forward)):
        row.verdict, row.detail = Verdict.IRREPRODUCIBLE, said
        return
    compiled = _observe_copy(case, model, lambda forward: torch.compile(forward, backend=backend))
    row.read_dynamo(torch._dynamo.utils.counters)
    if report is not None:
        row.read_report(report())
    row.eager_seconds, row.compiled_seconds = reference.seconds, compiled.seconds
    said = compare(reference, compiled)
    row.verdict = _second_look(case, model, compiled) if said else Verdict.IDENTICAL
    row.detail = BRANCHES if row.verdict is Verdict.BRANCH else said or ""
    if not row.identical:
        return
    if not all(moved(a, b) for a, b in zip(reference.calls, reference.calls[1:], strict=False)):
        row.verdict, row.detail = Verdict.UNCHANGED, "two calls in a row gave equal outputs"
    elif report is not None and not (row.replays or row.reasons):
        row.verdict, row.detail = Verdict.UNREPLAYED, "no replay, and no reason was counted"


def _second_look(case: Case, model: nn.Module, compiled: Observation) -> Verdict:
    """Why `compiled` is not plain eager: the model's own branch for compilation, Dynamo, or the backend."""
    if compare(_observe_copy(case, model, told_it_is_compiled), compiled) is None:
        return Verdict.BRANCH
    torch._dynamo.reset()
    by_dynamo = _observe_copy(case, model, lambda forward: torch.compile(forward, backend="eager"))
    return Verdict.TRACED if compare(by_dynamo, compiled) is None else Verdict.DIFFERS


def told_it_is_compiled(forward: Forward) -> Forward:
    """Eager `forward` on the branch that a model takes when it asks torch whether it is being compiled.

    transformers asks (attention with grouped heads for one query, experts in fp32, the scan of Mamba) and then
    calls other kernels, with other bits, whatever the backend.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for question in ("is_compiling", "is_dynamo_compiling"):
                stack.enter_context(mock.patch.object(torch.compiler, question, lambda: True))
            return forward(*args, **kwargs)

    return call


def _observe_copy(case: Case, model: nn.Module, through: Callable[[Any], Forward]) -> Observation:
    """Observes a copy of `model`, so that each observation starts from the same state."""
    model = copy.deepcopy(model)
    return observe(case, model, through(model))
