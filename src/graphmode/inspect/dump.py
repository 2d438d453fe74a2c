"""A captured graph as text that one can read top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def dump_rows(rows: Sequence[dict[str, Any]]) -> str:
    """One line a node: results, op, arguments, tier, and the user's source line where it changes."""
    lines: list[str] = []
    last = ""
    for i, row in enumerate(rows):
        if row["line"] and row["line"] != last:
            lines.append(f"# {row['line']}")
            last = row["line"]
        results = ", ".join(row["out"])
        arguments = ", ".join(row["in"])
        note = f"  # {row['note']}" if row["note"] else ""
        lines.append(f"{i:4} [{row['tier']:5}] {results} = {row['op']}({arguments}){note}")
    return "\n".join(lines)
