"""MkDocs hook: tables made from the code at build time, so that they can't disagree with it.

A page asks for one with a line such as `<!-- table: options -->`; the names are those of `TABLES`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from graphmode import errors
from graphmode.integrations.ascend_options import what_it_takes
from graphmode.integrations.ascend_words import WORDS, Word
from graphmode.options import Options, variable

_MARK = re.compile(r"^<!-- table: (\w+) -->$", re.MULTILINE)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _values(hint: Any) -> str:
    choices = typing.get_args(hint)
    if choices:
        return ", ".join(f"`{c!r}`" for c in choices)
    simple = {int: "an integer, 0 or more", bool: "`True`, `False`", str: "a string"}
    return simple.get(hint, "a `CompilerConfig`")


def options_table() -> str:
    """One row per option: from the fields of `Options` and their metadata."""
    hints = typing.get_type_hints(Options)
    rows = [
        (
            f"`{f.name}`" if hints[f.name] is object else f"`{f.name}`<br>`{variable(f.name)}`",
            f"`{f.default!r}`",
            _values(hints[f.name]),
            f.metadata["cost"],
        )
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


def _flat(word: Word) -> list[str]:
    return [name for name in word.names if "." not in name]


def _here(word: Word) -> str:
    if word.refused:
        return "refused"
    if word.option is None:
        return "accepted"
    return f"`{word.option}`"


def _row(word: Word) -> tuple[str, str, str, str, str]:
    places = [name for name in word.names if "." in name]
    both = word.names[0] in {"mode", "post_grad_custom_pre_pass", "post_grad_custom_post_pass"}
    return (
        "<br>".join(f"`{name}`" for name in _flat(word)),
        "<br>".join(f"`{name}`" for name in (word.names if both else places)),
        f"{what_it_takes(word)}; default `{word.default!r}`",
        _here(word),
        word.says,
    )


def npugraph_ex_table() -> str:
    """One row per option of npugraph_ex."""
    head = ("npugraph_ex", "torchair, after `config.`", "takes", "here", "what that means")
    return _table(head, (_row(w) for w in WORDS if _flat(w)))


def torchair_table() -> str:
    """One row per option that only torchair's CompilerConfig has."""
    head = ("torchair, after `config.`", "takes", "here", "what that means")
    return _table(head, (_row(w)[1:] for w in WORDS if not _flat(w)))


TABLES: dict[str, Callable[[], str]] = {
    "options": options_table,
    "errors": errors_table,
    "npugraph_ex": npugraph_ex_table,
    "torchair": torchair_table,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the tables in the place of their marks; an unknown mark fails the build."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)
