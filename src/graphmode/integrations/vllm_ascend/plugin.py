"""Whether graphmode's NPU platform takes the place of vllm-ascend's. Loads nothing of either but what asks for it."""

from __future__ import annotations

import logging
import os
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec

from graphmode.integrations.vllm.plugin import log

NAME = "graphmode_ascend"  # of the entry points
TRIED = ("0.23.",)  # versions of vllm-ascend that the tests ran with
_THEIRS = "ascend"
_PLATFORM = "graphmode.integrations.vllm_ascend.platform.GraphmodeNPUPlatform"


def platform() -> str | None:
    """Entry point of `vllm.platform_plugins`: the platform's qualified name, or None to step aside.

    It is active where `VLLM_PLUGINS` names it and not vllm-ascend's, since two active platforms stop vLLM. With a
    version of vllm-ascend that was not tried, vllm-ascend's own platform is what it names.
    """
    why = why_not()
    if why is None:
        return _PLATFORM
    log.log(*why)
    return _their_platform() if chosen() and not _allowed(_THEIRS) and installed() else None


def general() -> None:
    """Entry point of `vllm.general_plugins`, in every process of vLLM.

    `VLLM_PLUGINS` chooses among plug-ins of every kind: those of vllm-ascend's that it would drop are loaded here.
    """
    if not chosen() or not installed():
        return
    from graphmode.integrations.vllm.metrics import watch

    for plugin in _their_plugins("vllm.general_plugins"):
        if not _allowed(plugin.name):
            plugin.load()()
    watch()


def why_not() -> tuple[int, str] | None:
    """Why graphmode's platform steps aside here, with the level at which the log says so; None where it does not."""
    if not installed():
        return logging.DEBUG, "graphmode_ascend steps aside: vllm-ascend is not installed"
    if not chosen():
        return logging.INFO, f"graphmode leaves the NPU to vllm-ascend: VLLM_PLUGINS={NAME} would choose graphmode"
    if _allowed(_THEIRS):
        why = f"VLLM_PLUGINS names {_THEIRS} beside {NAME}, and two platforms stop vLLM: graphmode steps aside"
        return logging.WARNING, why
    version = distribution("vllm-ascend").version
    if not version.startswith(TRIED):
        made_for = " or ".join(f"{v}x" for v in TRIED)
        why = f"graphmode is made for vllm-ascend {made_for} and this is {version}: vllm-ascend's own graphs stay"
        return logging.WARNING, why
    return None


def chosen() -> bool:
    """Whether the user asked for graphmode on the NPU."""
    return os.environ.get("VLLM_PLUGINS") is not None and _allowed(NAME)


def installed() -> bool:
    """Whether vllm-ascend is there."""
    if find_spec("vllm_ascend") is None:
        return False
    try:
        distribution("vllm-ascend")
    except PackageNotFoundError:
        return False
    return True


def _allowed(name: str) -> bool:
    named = os.environ.get("VLLM_PLUGINS")
    return named is None or name in named.split(",")


def _their_plugins(group: str) -> list[EntryPoint]:
    found = entry_points(group=group)
    return [e for e in found if e.dist is not None and e.dist.name.replace("_", "-") == "vllm-ascend"]


def _their_platform() -> str | None:
    for plugin in _their_plugins("vllm.platform_plugins"):
        name: str | None = plugin.load()()
        return name
    return None
