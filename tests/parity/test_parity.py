"""A fixed third of op_db against eager, through every driver; `make parity` runs all of it.

Owns what `make test` asserts of the sweep: every case passes, exceptions are few, and none is stale.
"""

from __future__ import annotations

import functools

import pytest

from .check import LISTED, Result
from .drivers import driver
from .exceptions import EXCEPTIONS, OF_A_DEVICE, REWRITTEN_BY_DYNAMO
from .samples import DEVICE, DTYPES
from .session import Driver
from .sweep import OPS, chosen, jobs, sweep_op

THIRD = [name for name in OPS if chosen(name, 0, 3)]


@functools.cache
def _driver(name: str) -> Driver:
    return driver(name)


def _sweep(name: str, driver_name: str, dtypes: list[str]) -> list[Result]:
    results = [r for op, tag in jobs(dtypes) if op == name for r in sweep_op(op, tag, _driver(driver_name))]
    failed = [f"{r.dtype}/{r.label}: {r.kind}: {r.detail}" for r in results if not r.passed]
    assert not failed, "\n".join([f"{len(failed)} of {len(results)} cases of {name}", *failed])
    return results


@pytest.mark.parametrize("name", THIRD)
def test_backend_equals_eager(name: str) -> None:
    results = _sweep(name, "backend", list(DTYPES))
    if name in EXCEPTIONS:
        assert any(r.kind == LISTED for r in results), f"{name} passes: remove it from exceptions.py"


@pytest.mark.parametrize("name", THIRD)
def test_raw_graph_equals_eager(name: str) -> None:
    _sweep(name, "raw", ["fp32"])


@pytest.mark.parametrize("name", THIRD)
def test_torch_compile_equals_eager(name: str) -> None:
    _sweep(name, "compile", ["fp32"])


@pytest.mark.parametrize("name", REWRITTEN_BY_DYNAMO)
def test_dynamo_still_rewrites(name: str) -> None:
    results = _sweep(name, "compile", ["fp32"])
    assert any(r.kind == LISTED for r in results), f"{name} passes: remove it from exceptions.py"


def test_the_exceptions_are_few_and_exist() -> None:
    listed = EXCEPTIONS | REWRITTEN_BY_DYNAMO
    assert len(listed) - len(OF_A_DEVICE.get(DEVICE.type, {})) <= len(OPS) // 100
    assert set(listed) <= set(OPS)
    assert all(listed.values())
