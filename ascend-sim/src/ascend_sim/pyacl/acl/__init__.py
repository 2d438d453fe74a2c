"""CANN's Python binding `acl` over the emulated runtime: what vllm-ascend imports of it.

A real CANN's set_env.sh puts its `acl` on the path; `ascend_sim.vllm.install` puts this one there.
"""

from __future__ import annotations

from acl import rt

__all__ = ["rt"]
