"""Whether graphmode's platform takes the place of vLLM's CPU platform. Loads nothing of vLLM but what asks for it."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points

import torch

TRIED = ("0.32.",)  # versions of vLLM that the tests ran with
_GROUP = "vllm.platform_plugins"
_PLATFORM = "graphmode.integrations.vllm.platform.GraphmodeCpuPlatform"

log = logging.getLogger("vllm.graphmode")  # below vLLM's own logger, so that its settings hold


def platform() -> str | None:
    """Entry point of `vllm.platform_plugins`: the platform's qualified name, or None to step aside.

    It steps aside where vLLM's CPU platform would not be active, where another platform from outside vLLM is installed
    and allowed (two active ones stop vLLM; `VLLM_PLUGINS=graphmode` decides for ours), and, with one line in the log,
    for a version of vLLM that was not tried.
    """
    from vllm.platforms import cpu_platform_plugin
    from vllm.version import __version__ as version

    others = [name for name in (e.name for e in entry_points(group=_GROUP)) if name != "graphmode" and _allowed(name)]
    if others:
        log.info("graphmode steps aside for the platform plug-in %s", ", ".join(others))
        return None
    if cpu_platform_plugin() is None:
        return None
    if not version.startswith(TRIED):
        log.warning(
            "graphmode is made for vLLM %s and this is %s: vLLM's own compiler stays in place",
            " or ".join(f"{v}x" for v in TRIED),
            version,
        )
        return None
    if torch.__version__.split("+")[0].rpartition(".")[0] != "2.13":
        log.warning("graphmode is made for torch 2.13 and this is %s: vLLM's own compiler stays", torch.__version__)
        return None
    return _PLATFORM


def _allowed(name: str) -> bool:
    chosen = os.environ.get("VLLM_PLUGINS")
    return chosen is None or name in chosen.split(",")
