"""Over the emulated NPU, in the environment that `make install-vllm-ascend` makes; elsewhere nothing is collected."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_there = all(importlib.util.find_spec(name) for name in ("ascend_sim", "vllm_ascend"))
collect_ignore_glob = [] if _there else ["test_*.py"]
if _there:
    sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks/ascend"))  # vllm_modes starts the engines
    os.environ.setdefault("VLLM_PLUGINS", "graphmode_ascend")  # of this process; each engine has its own


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs before and after, and nothing in vllm-ascend's lists of what attention recorded."""
    import torch
    from vllm_ascend.compilation import acl_graph

    import graphmode

    graphmode.reset()
    monkeypatch.setattr(acl_graph, "_graph_params", None)
    acl_graph.set_graph_params(range(1, 9))
    with torch.inference_mode():
        yield
    graphmode.reset()
