"""The sweep's rows as text: one summary line, then what failed and what was not captured, grouped.

Owns the wording of the report; it runs nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from .check import COUNTED, LISTED, NO_REFERENCE, REFUSED, REPLAYED
from .exceptions import EXCEPTIONS

Row = dict[str, Any]


def stale_exceptions(rows: list[Row]) -> list[str]:
    """The entries of exceptions.py that were swept and never differed from eager."""
    needed = {row["op"] for row in rows if row["kind"] == LISTED}
    swept = {row["op"] for row in rows if row["kind"] in (REPLAYED, COUNTED, REFUSED)}
    return sorted(name for name in EXCEPTIONS if name in swept and name not in needed)


def summarise(rows: list[Row], stale: list[str], *, driver: str) -> str:
    kinds = Counter(row["kind"] for row in rows)
    ran = [row for row in rows if row["kind"] != NO_REFERENCE]
    ops = {row["op"] for row in rows}
    failed = [row for row in rows if not row["passed"]]
    sensitive = sum(row["sensitive"] for row in ran)
    lines = [
        f"{driver}: {len(ops)} operators, {len(rows)} cases, {len(failed)} failures in "
        f"{len({row['op'] for row in failed})} operators; "
        + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
        + f"; {sensitive} of {len(ran)} give other results at each replay",
    ]
    lines += _by_kind(failed)
    lines += _reasons([row for row in rows if row["kind"] in (COUNTED, REFUSED)])
    lines += [f"exceptions.py lists {name}, and it passes: remove it" for name in stale]
    return "\n".join(lines)


def _by_kind(failed: list[Row]) -> list[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in failed:
        groups[row["kind"]].append(row)
    lines = []
    for kind, rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines += ["", f"{kind}: {len(rows)}"]
        lines += [f"  {_name(row):<58} {row['detail'][:160]}" for row in sorted(rows, key=_name)]
    return lines


def _reasons(rows: list[Row]) -> list[str]:
    ops: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for reason in row["reasons"]:
            ops[reason[:100]].add(row["op"])
    if not ops:
        return []
    lines = ["", f"not captured, for a reason: {len(rows)} cases"]
    for reason, names in sorted(ops.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {len(names):>4} operators  {reason}: {', '.join(sorted(names)[:5])}")
    return lines


def _name(row: Row) -> str:
    return f"{row['op']}/{row['dtype']}/{row['label']}"
