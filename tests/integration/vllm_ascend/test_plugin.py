"""Who decides on the platform: `VLLM_PLUGINS`."""

from __future__ import annotations

import logging
import pkgutil
import re
from pathlib import Path

import pytest

from graphmode.integrations.vllm_ascend import plugin

PLATFORM = "graphmode.integrations.vllm_ascend.platform.GraphmodeNPUPlatform"
THEIRS = "vllm_ascend.platform.NPUPlatform"
GUIDE = Path(__file__).resolve().parents[3] / "docs/ascend.md"


@pytest.mark.parametrize(
    ("named", "active"),
    [
        (None, None),
        ("", None),
        ("ascend", None),
        ("graphmode_ascend", PLATFORM),
        ("graphmode_ascend,ascend_model_loader", PLATFORM),
        ("graphmode_ascend,ascend", None),
    ],
)
def test_the_platform_is_graphmode_s_where_it_is_named_alone(
    named: str | None, active: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if named is not None:
        monkeypatch.setenv("VLLM_PLUGINS", named)
    assert plugin.platform() == active


def test_another_version_keeps_vllm_ascend_s_platform_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "graphmode_ascend")
    monkeypatch.setattr(plugin, "TRIED", ("0.99.",))
    level, why = plugin.why_not() or (0, "")
    assert level == logging.WARNING and "0.99.x" in why
    assert plugin.platform() == THEIRS


def test_vllm_ascend_s_own_plug_ins_are_loaded_where_the_variable_drops_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Plugin:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> object:
            return lambda: called.append(self.name)

    monkeypatch.setattr(plugin, "_their_plugins", lambda _: [Plugin("one"), Plugin("two")])
    monkeypatch.setenv("VLLM_PLUGINS", "graphmode_ascend,two")
    plugin.general()
    assert called == ["one"]


def test_the_cpu_s_platform_steps_aside_where_this_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphmode.integrations.vllm.plugin import why_not

    monkeypatch.setenv("VLLM_PLUGINS", "graphmode,graphmode_ascend")
    assert "graphmode_ascend" in (why_not() or (0, ""))[1]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(vllm_ascend\.[\w.]+)`", GUIDE.read_text()))))
def test_what_the_guide_names_of_vllm_ascend_is_there(name: str) -> None:
    pkgutil.resolve_name(name)
