"""Whether graphmode's platform takes the place of vLLM's CPU platform. Loads nothing of vLLM but what asks for it."""

from __future__ import annotations

import logging
import os
from importlib.metadata import entry_points

TRIED = ("0.32.",)  # versions of vLLM that the tests ran with
_GROUP = "vllm.platform_plugins"
_OURS = ("graphmode", "graphmode_ascend")  # the second one acts only where it is named
_PLATFORM = "graphmode.integrations.vllm.platform.GraphmodeCpuPlatform"

log = logging.getLogger("vllm.graphmode")  # below vLLM's own logger, so that its settings hold


def platform() -> str | None:
    """Entry point of `vllm.platform_plugins`: the platform's qualified name, or None to step aside.

    It steps aside where vLLM's CPU platform would not be active, where another platform from outside vLLM is installed
    and allowed (two active ones stop vLLM; `VLLM_PLUGINS=graphmode` decides for ours), and, with one line in the log,
    for a version of vLLM that was not tried.
    """
    why = why_not()
    if why is not None:
        log.log(*why)
    return _PLATFORM if why is None else None


def why_not() -> tuple[int, str] | None:
    """Why graphmode's platform steps aside here, with the level at which the log says so; None where it does not."""
    from vllm.platforms import cpu_platform_plugin
    from vllm.version import __version__ as version

    others = [name for name in (e.name for e in entry_points(group=_GROUP)) if name not in _OURS and _allowed(name)]
    others += [name for name in _OURS[1:] if name in os.environ.get("VLLM_PLUGINS", "").split(",")]
    if others:
        return logging.INFO, f"graphmode steps aside for the platform plug-in {', '.join(others)}"
    if cpu_platform_plugin() is None:
        return logging.DEBUG, "graphmode steps aside: vLLM's CPU platform is not the one for this installation"
    if not version.startswith(TRIED):
        made_for = " or ".join(f"{v}x" for v in TRIED)
        return (
            logging.WARNING,
            f"graphmode is made for vLLM {made_for} and this is {version}: vLLM's own compiler stays in place",
        )
    return None


def _allowed(name: str) -> bool:
    chosen = os.environ.get("VLLM_PLUGINS")
    return chosen is None or name in chosen.split(",")
