"""All cases of one operator under one dtype, in this process.

Owns which operators there are, how they are divided into shards, and which cases a driver takes.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo

from .check import NO_REFERENCE, RAISED, Result, run_case
from .exceptions import EXCEPTIONS, REWRITTEN_BY_DYNAMO
from .families import large_cases, must_replay
from .samples import DTYPES, Case, cases, dtype_for, op_name
from .session import Driver

OPS: dict[str, OpInfo] = {op_name(op): op for op in op_db}

COMPILE_SHARE = 8
"""torch.compile takes up to a second per case, so that its driver takes one case in eight, chosen by hash."""


def chosen(name: str, part: int, of: int) -> bool:
    """A choice that stays the same when operators come and go."""
    return zlib.crc32(name.encode()) % of == part


def jobs(dtypes: list[str], part: int = 0, of: int = 1) -> list[tuple[str, str]]:
    """The (operator, dtype) pairs of one shard."""
    names = [name for name in OPS if chosen(name, part, of)]
    return [(name, tag) for name in names for tag in dtypes if _applies(OPS[name], tag)]


def _applies(op: OpInfo, tag: str) -> bool:
    # An operator that the CPU has no kernel for still shows up once, as such.
    return tag == "fp32" or op.supports_dtype(DTYPES[tag], "cpu")


def cases_of(name: str, tag: str, driver: Driver) -> Iterator[Case]:
    op = OPS[name]
    for case in (*cases(op, tag), *large_cases(op, tag)):
        if driver.name != "compile" or chosen(case.name, 0, COMPILE_SHARE):
            yield case


def sweep_op(name: str, tag: str, driver: Driver) -> list[Result]:
    """Run every case of the operator. Never raises for what a case does."""
    op = OPS[name]
    if dtype_for(op, tag) is None:
        return [Result(name, tag, "all", NO_REFERENCE, "no CPU kernel takes any dtype of this operator")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            todo = list(cases_of(name, tag, driver))
        except Exception as error:
            return [Result(name, tag, "samples", RAISED, f"its samples: {type(error).__name__}: {error}")]
        listed = name in EXCEPTIONS or (driver.name == "compile" and name in REWRITTEN_BY_DYNAMO)
        return [run_case(case, driver, must_replay=must_replay(op, tag), listed=listed) for case in todo]
