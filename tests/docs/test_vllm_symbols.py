"""What the vLLM pages name exists: symbols of vLLM and of ours, ops, entry points, environment variables, metrics."""

from __future__ import annotations

import ast
import dataclasses
import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="make install-vllm installs it")

import vllm.envs
import vllm.platforms  # the platform, before what asks for it
import vllm.plugins

from graphmode.integrations.vllm import metrics, plugin
from graphmode.integrations.vllm.metrics import SERIES
from graphmode.options import names, variable

DOCS = Path(__file__).resolve().parents[2] / "docs"
ADAPTED, GUIDE, METRICS = (DOCS / page for page in ("vllm-adapted.md", "vllm.md", "vllm-metrics.md"))
GROUPS = (vllm.plugins.PLATFORM_PLUGINS_GROUP, vllm.plugins.DEFAULT_PLUGINS_GROUP)


def quoted(page: Path, pattern: str) -> list[str]:
    """What a page has in single backticks and matches, each once."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return sorted({found for found in re.findall(r"`([^`\n]+)`", text) if re.fullmatch(pattern, found)})


def attribute(owner: Any, name: str) -> Any:
    """An attribute; a field that only its instances have counts as its declaration."""
    if hasattr(owner, name):
        return getattr(owner, name)
    declared = {f.name: f for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
    if name in declared:
        return declared[name]
    raise AttributeError(f"{owner!r} has no {name!r}")


def resolved(name: str) -> Any:
    """The object of a fully qualified name: the longest part that is a module, then attribute by attribute."""
    found: Any = import_module(name.partition(".")[0])
    here = found.__name__
    for part in name.split(".")[1:]:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            try:
                import_module(f"{here}.{part}")
            except ModuleNotFoundError as error:
                raise AttributeError(f"{here} has no {part!r}, of {name}") from error
        found = attribute(found, part)
        here += f".{part}"
    return found


@pytest.mark.parametrize(
    "name", sorted({n for page in (ADAPTED, GUIDE) for n in quoted(page, r"(vllm|graphmode)(\.\w+)+")})
)
def test_every_symbol_exists(name: str) -> None:
    if name in GROUPS:
        assert "graphmode" in {point.name for point in entry_points(group=name)}
    else:
        resolved(name)


@pytest.mark.parametrize("name", quoted(ADAPTED, r"\w+::\w+"))
def test_every_op_is_registered(name: str) -> None:
    import_module("vllm.v1.attention.backends.cpu_attn")  # brings the kernels, and the attention layer's ops
    assert torch._C._jit_get_schemas_for_operator(name) != []


@pytest.mark.parametrize("page", [ADAPTED, GUIDE, METRICS], ids=lambda p: p.name)
def test_every_environment_variable_is_read_by_vllm_or_us(page: Path) -> None:
    ours = {*map(variable, names()), metrics._FOLDER}
    for found in quoted(page, r"(VLLM|GRAPHMODE)_\w+(=\S*)?"):
        name = found.partition("=")[0]
        assert name in ours or name in vllm.envs.environment_variables, f"{name} is read by nobody"


def test_the_pages_were_read() -> None:
    found = quoted(ADAPTED, r"vllm(\.\w+)+")
    assert len(found) >= 50 and set(GROUPS) <= set(found)
    assert len(quoted(ADAPTED, r"\w+::\w+")) >= 4 and len(quoted(ADAPTED, r"VLLM_\w+")) >= 3


def test_a_name_that_does_not_exist_is_noticed() -> None:
    for name in ("vllm.no_such_module.thing", "vllm.config.VllmConfig.no_such_field", "vllm.forward_context.nothing"):
        with pytest.raises(AttributeError):
            resolved(name)


def test_the_table_of_metrics_has_every_series() -> None:
    named = set(quoted(METRICS, r"graphmode_\w+")) - {"graphmode_report"}  # that one is a worker's method
    assert named == {s.name + ("_total" if s.kind == "counter" else "") for s in SERIES}


def messages() -> set[tuple[str, str]]:
    """Pieces of text that the integration puts into the log, into reasons and into errors, with their file."""
    found = set()
    integrations = Path(plugin.__file__).parents[1]
    for path in sorted(p for name in ("vllm", "vllm_ascend") for p in (integrations / name).glob("*.py")):
        if path.stem == "metrics":  # the table of series has its own test
            continue
        tree, file = ast.parse(path.read_text()), path.stem
        for owner in ast.walk(tree):
            for said in ast.iter_child_nodes(owner):
                docstring = isinstance(owner, ast.Expr)
                if isinstance(said, ast.Constant) and isinstance(said.value, str) and not docstring:
                    pieces = re.split(r"%[sd]|\n", said.value)
                    found |= {(file, text) for piece in pieces if len((text := piece.strip(" :,;.()'\"")).split()) > 3}
    return found


def test_every_message_of_the_integration_is_in_the_guide() -> None:
    guide = re.sub(r"[\\*`]", "", GUIDE.read_text())
    said = messages()
    assert len(said) > 25
    assert sorted((file, text) for file, text in said if text.replace("`", "") not in guide) == []
