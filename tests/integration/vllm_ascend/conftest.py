"""Over the emulated NPU, in the environment that `make install-vllm-ascend` makes; elsewhere nothing is collected."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_there = all(importlib.util.find_spec(name) for name in ("ascend_sim", "vllm_ascend"))
collect_ignore_glob = [] if _there else ["test_*.py"]
if _there:
    sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks/ascend"))  # vllm_modes starts the engines
    os.environ.setdefault("VLLM_PLUGINS", "graphmode_ascend")  # of this process; each engine has its own
