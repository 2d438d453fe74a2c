"""Runs a program in a process of its own, with settings of the emulation, or one that is meant to end badly."""

from __future__ import annotations

import os
import subprocess
import sys

from ascend_sim import runtime


def run(program: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """The finished process; its settings are ASCEND_SIM_<NAME>."""
    given = {f"ASCEND_SIM_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**os.environ, **given, "ASCEND_SIM": "1", "LD_LIBRARY_PATH": str(runtime.FOLDER)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
