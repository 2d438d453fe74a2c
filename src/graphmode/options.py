"""Every option of graphmode, declared once: default, environment variable, and what it costs.

Order of precedence: torch.compile(options=...), then `with options(...)`, then GRAPHMODE_* variables, then defaults.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from graphmode.errors import OptionError

Mode = Literal["reduce-overhead", "max-autotune", "eager"]


def _option(default: Any, cost: str) -> Any:
    return field(default=default, metadata={"cost": cost})


@dataclass(frozen=True)
class Options:
    """Options of one compiled region. Frozen: it belongs to the region for its life."""

    mode: Mode = _option(
        "reduce-overhead",
        "reduce-overhead runs eager's kernels, bit for bit; max-autotune may take a device's fused calls, whose "
        "results differ by roundings (NPUs have some, the CPU none yet); eager lowers and runs the program, but "
        "captures nothing",
    )
    capture_after: int = _option(
        1, "live calls of a signature before it is captured; 0 captures at once, more keeps rare shapes live"
    )
    max_graphs: int = _option(64, "graphs held per compiled region; the least recently used goes first")
    max_bytes: int = _option(
        0, "bytes the arena and constants of all graphs may take, 0 for no cap; a graph over it runs live"
    )
    fuel: int = _option(
        1_000_000,
        "runs of small calls that each graph, and each program where it runs outside one, may turn into a kernel, and "
        "groups of calls that a program may turn into a device's fused ones, from the first; 0 for none. Halve it "
        "again and again to find one that you suspect",
    )
    require: bool = _option(False, "raise FallbackError where something would run outside a graph")
    poison: bool = _option(False, "fill arena and outputs with garbage before each replay: finds skipped work, slow")
    verify: bool = _option(
        False, "replay each new graph once on scratch copies and compare with eager: doubles capture time"
    )
    device: str = _option("auto", "adapter that captures: auto takes that of the inputs")

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            choices = typing.get_args(hint)
            good = value in choices if choices else type(value) is hint
            if not good or (hint is int and value < 0):
                wanted = " or ".join(repr(c) for c in choices) if choices else _wanted(hint)
                raise OptionError(f"option {name!r} takes {wanted}; got {value!r}")


def _wanted(hint: type) -> str:
    return {int: "an integer, 0 or more", bool: "True or False", str: "a string"}[hint]


def names() -> list[str]:
    """All option names."""
    return [f.name for f in dataclasses.fields(Options)]


def variable(name: str) -> str:
    """The environment variable of an option."""
    return f"GRAPHMODE_{name.upper()}"


def _from_environment() -> dict[str, Any]:
    hints = typing.get_type_hints(Options)
    found: dict[str, Any] = {}
    for name in names():
        text = os.environ.get(variable(name))
        if text is None:
            continue
        if hints[name] is bool:
            truth = {"1": True, "true": True, "0": False, "false": False}.get(text.lower())
            if truth is None:
                raise OptionError(f"{variable(name)} takes 1, 0, true or false; got {text!r}")
            found[name] = truth
        elif hints[name] is int:
            try:
                found[name] = int(text)
            except ValueError:
                raise OptionError(f"{variable(name)} takes an integer; got {text!r}") from None
        else:
            found[name] = text
    return found


_scoped: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "graphmode_options", default=MappingProxyType({})
)


def check_names(given: Mapping[str, Any]) -> None:
    """Raises OptionError for a name that is no option."""
    for name in given:
        if name not in names():
            raise OptionError(f"unknown option {name!r}; the options are {', '.join(names())}")


def resolve(given: Mapping[str, Any] | Options | None = None, mode: str | None = None) -> Options:
    """The options in force here for a region compiled with `given`; `mode`, where there is one, goes first."""
    if isinstance(given, Options):
        return given if mode is None else dataclasses.replace(given, mode=typing.cast(Mode, mode))
    given = dict(given or {})
    if mode is not None:
        given["mode"] = mode
    check_names(given)
    return Options(**{**_from_environment(), **_scoped.get(), **given})


@contextlib.contextmanager
def options(**given: Any) -> Iterator[None]:
    """Sets options for every region compiled inside the block.

    Raises:
        OptionError: for an unknown name or a bad value, listing the right ones.
    """
    check_names(given)
    Options(**given)
    token = _scoped.set({**_scoped.get(), **given})
    try:
        yield
    finally:
        _scoped.reset(token)
