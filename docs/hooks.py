"""MkDocs hook: tables made from the code at build time, so that they can't disagree with it.

A page asks for one with a line `<!-- table: options -->` or `<!-- table: errors -->`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphmode import errors
from graphmode.options import Options, variable

_MARK = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _values(hint: Any) -> str:
    choices = typing.get_args(hint)
    if choices:
        return ", ".join(f"`{c!r}`" for c in choices)
    return {int: "an integer, 0 or more", bool: "`True`, `False`", str: "a string"}[hint]


def options_table() -> str:
    """One row per option: from the fields of `Options` and their metadata."""
    hints = typing.get_type_hints(Options)
    rows = [
        (f"`{f.name}`<br>`{variable(f.name)}`", f"`{f.default!r}`", _values(hints[f.name]), f.metadata["cost"])
        for f in dataclasses.fields(Options)
    ]
    return _table(("option, environment variable", "default", "takes", "what it does, what it costs"), rows)


def errors_table() -> str:
    """One row per class of errors.py: from its docstring and its bases."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.GraphModeError)]
    classes.sort(key=lambda c: inspect.getsourcelines(c)[1])
    rows = [
        (
            f"`{c.__name__}`",
            " ".join((inspect.getdoc(c) or "").split()),
            ", ".join(f"`{b.__name__}`" for b in c.__bases__),
        )
        for c in classes
    ]
    return _table(("error", "when", "is a"), rows)


TABLES: dict[str, Callable[[], str]] = {"options": options_table, "errors": errors_table}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables in the place of their marks; an unknown mark fails the build."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)
