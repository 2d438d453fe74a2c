"""Runs a script in a process of its own: for what may crash, fork or hang. Owns the time limit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

_HEAD = "import os, sys, threading, gc\nimport torch, graphmode\ntorch.set_num_threads(1)\n"


def alone(script: str, *, seconds: float = 60, **environment: str) -> str:
    """What the script printed; it must end well. Freed memory is overwritten, so that using it shows."""
    env = {**os.environ, "MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "2", **environment}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _HEAD + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=env,
        check=False,
    )
    assert ended.returncode == 0, f"ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr[-2000:]}"
    return ended.stdout
