"""Writes the rows of a sweep as a Markdown page and as JSON."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .row import Row, Verdict

DEVICE = os.environ.get("GRAPHMODE_TEST_DEVICE", "cpu")
HEAD = ("model", "family", "identical", "graphs", "replays", "breaks", "live calls", "why", "seconds")


def write(rows: Sequence[Row], path: Path, backend: str) -> None:
    """`path` gets the page, `path` with the suffix .json the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(rows, backend))
    data = {"backend": backend, "rows": [row.as_json() for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of several parts of a sweep."""
    return [Row.from_json(row) for path in paths for row in json.loads(path.read_text())["rows"]]


def page(rows: Sequence[Row], backend: str) -> str:
    types = {row.model_type for row in rows if row.model_type}
    nets = sum(row.family == "net" for row in rows)
    same = sum(row.identical for row in rows)
    branched = sum(row.verdict is Verdict.BRANCH for row in rows)
    lines = [
        f"# Model sweep: `backend={backend!r}`" + (f" on `{DEVICE}`" if DEVICE != "cpu" else ""),
        "",
        f"{same} of {len(rows)} cases identical to eager, bit for bit; "
        f"{len(types)} architectures of transformers, {nets} hand-written nets." + _left_out(rows),
        "",
        f"`make sweep{'' if DEVICE == 'cpu' else f' DEVICE={DEVICE}'}`, {date.today()}, torch {version('torch')}, "
        f"transformers {version('transformers')}; tiny "
        "configurations, random weights. Graphs are those captured in all; seconds are of the whole case, eager's and "
        "Dynamo's included.",
        "",
        f"{branched} of these models ask torch whether they are being compiled, and then take another branch with "
        "other bits, whatever the backend: they are compared with eager on that branch (*as compiled*).",
        "",
        *_table(("family", "cases", "identical"), _by_family(rows)),
        "",
        *_table(HEAD, (_cells(row) for row in rows)),
        "",
    ]
    return "\n".join(lines)


def _left_out(rows: Sequence[Row]) -> str:
    count = sum(row.verdict is Verdict.EAGER_FAILED for row in rows)
    return f" {count} cases fail in eager on this device, before any backend is asked." if count else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _by_family(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    cases = Counter(row.family for row in rows)
    same = Counter(row.family for row in rows if row.identical)
    return [(family, count, same[family]) for family, count in cases.items()]


def _cells(row: Row) -> list[Any]:
    identical = {Verdict.IDENTICAL: "yes", Verdict.BRANCH: "yes, as compiled"}.get(row.verdict)
    why = [] if identical else [_one_line(row.detail)]
    why += [_reason(reason) for reason in row.reasons]
    why += [f"Dynamo: {_one_line(reason)} ({count}x)" for reason, count in row.dynamo_breaks.items()]
    counts = (row.captures, row.replays, row.breaks, row.live_calls)
    answer = identical or f"**no**: {row.verdict}"
    return [
        row.name,
        row.family,
        answer,
        *counts,
        _folded(why) if identical else "<br>".join(why),
        f"{row.seconds:.1f}",
    ]


def _folded(why: Sequence[str]) -> str:
    """What only a reader of this row asks for opens with a click, or its cell is taller than a screen."""
    what = f"{len(why)} reason{'s' if len(why) > 1 else ''}"
    return f"<details><summary>{what}</summary>{'<br>'.join(why)}</details>" if why else ""


def _reason(reason: dict[str, Any]) -> str:
    op = f" (`{reason['op']}`)" if reason["op"] else ""
    line = f" at `{_one_line(reason['line'])}`" if reason["line"] else ""
    return f"{_one_line(reason['reason'])}{op}{line}, {reason['count']}x"


def _one_line(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
