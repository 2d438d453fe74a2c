"""A few models and features in graph mode against eager; `make vllm-models` tries them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make install-vllm installs it")

MATRIX = Path(__file__).with_name("matrix.py")
# latent attention and experts; state space and attention; weights that change under the graphs
QUICK = ["deepseek_v3", "granite_hybrid", "weights reloaded"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What matrix.py found, by name."""
    path = tmp_path_factory.mktemp("vllm") / "rows.json"
    only = [word for name in QUICK for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, str(MATRIX), "--rows", str(path), *only], capture_output=True, text=True, timeout=600
    )
    assert path.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return {key.split(" ", 1)[1]: row for key, row in json.loads(path.read_text()).items()}


@pytest.mark.parametrize("name", QUICK)
def test_graph_mode_answers_as_eager_does(name: str, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[name]
    assert row["equal"] and row["result"] == "graph mode", row
    assert row["graphs"] > 0 and row["replays"] > 50 and row["live_calls"] == 0, row
