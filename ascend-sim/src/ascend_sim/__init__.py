"""Ascend's runtime emulated on the host, for the unmodified torch_npu.

    ascend-sim run python serve.py

runs a program over it; in a test suite the pytest plugin does. Without ASCEND_SIM=1 in the environment nothing is
done, and a real NPU is used.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec

from ascend_sim.runtime import (
    Usage,
    calls,
    device_time,
    fail_allocation,
    fail_task,
    host_time,
    timeline,
    usage,
)

__version__ = version("ascend-sim")
__all__ = [
    "Usage",
    "activate",
    "calls",
    "device_time",
    "fail_allocation",
    "fail_task",
    "host_time",
    "is_active",
    "timeline",
    "usage",
]

_active = False


def is_active() -> bool:
    """Whether this process runs over the emulation."""
    return _active


def activate() -> None:
    """Has torch_npu run over the emulation, in this process and those it starts. Call it before torch_npu is imported.

    Raises:
        RuntimeError: torch_npu is there already, over something else.
    """
    global _active
    if _active:
        return
    from ascend_sim import runtime

    os.environ["ASCEND_SIM"] = "1"
    runtime.load()
    _active = True
    from ascend_sim import ops

    ops.register()
    if find_spec("vllm_ascend") is not None:
        from ascend_sim import vllm

        vllm.install()


def autoload() -> None:
    """What `import torch` calls: does nothing unless this process was asked to run over the emulation."""
    if os.environ.get("ASCEND_SIM") == "1":
        activate()
