"""Our table of options against torch_npu's own two CompilerConfig classes: every name, every value, both ways."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import npugraph_ex
import pytest
import torch
import torch_npu

import graphmode
from graphmode.errors import OptionError
from graphmode.integrations.ascend_options import changed, is_theirs, ours
from graphmode.integrations.ascend_words import WORDS
from graphmode.options import resolve
from tests.contract.ways import assert_same


def torchair_configs() -> tuple[Any, Any]:
    """torchair's CompilerConfig, and its table for npugraph_ex, without the rest of torchair, which needs GE."""
    before = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "torchair"}
    for name in before:
        del sys.modules[name]
    folder = Path(torch_npu.__file__).parent / "dynamo" / "torchair"
    try:
        for package in ("", "._utils", ".core"):
            bare = sys.modules[f"torchair{package}"] = ModuleType(f"torchair{package}")
            bare.__path__ = [str(folder.joinpath(*package.split(".")))]
        config = importlib.import_module("torchair.configs.compiler_config").CompilerConfig
        return config, importlib.import_module("torchair.configs.npugraphex_config")._NpuGraphExConfig
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchair"]:
            del sys.modules[name]
        sys.modules.update(before)


TORCHAIR, TORCHAIR_TAKES = torchair_configs()
CONFIGS = {"torchair": TORCHAIR, "npugraph_ex": npugraph_ex.CompilerConfig}
MIRROR = "npugraphex_config."  # npugraph_ex's words once more, in torchair's configuration
BY_NAME = {name: word for word in WORDS for name in word.names}
UNSET = object()


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a configuration, at any depth: what users write after `config.`, and what holds it."""
    held = {n: v for n, v in vars(type(config)).items() if not (n.startswith("__") or n.isupper())}
    held = {n: v for n, v in held.items() if not (inspect.isroutine(v) or isinstance(v, (property, classmethod)))}
    for name, value in {**held, **vars(config)}.items():
        if name == "_fixed_attrs":
            continue
        if "config" in type(value).__module__ and not hasattr(value, "optional"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            public = name.removeprefix("_")
            yield prefix + (public if hasattr(type(config), public) and hasattr(value, "optional") else name), value


def every(package: str) -> dict[str, Any]:
    return dict(leaves(CONFIGS[package]()))


def known(name: str) -> str:
    return name.removeprefix(MIRROR)


@pytest.mark.parametrize("package", CONFIGS)
def test_no_option_of_theirs_is_missing(package: str) -> None:
    found = every(package)
    assert len(found) > 25
    assert [name for name in found if not is_theirs(known(name))] == []


def test_no_option_is_made_up() -> None:
    theirs = {known(name) for package in CONFIGS for name in every(package)}
    assert [name for name in BY_NAME if name not in theirs] == []


def test_what_npugraph_ex_takes_in_torchair_is_known() -> None:
    for name, path in TORCHAIR_TAKES.OPTIONS_TO_CONFIG_MAP.items():
        assert is_theirs(name) and is_theirs(path)


@pytest.mark.parametrize("package", CONFIGS)
def test_values_and_defaults_are_theirs(package: str) -> None:
    for name, holder in every(package).items():
        word = BY_NAME[known(name)]
        default = getattr(holder, "default", None) if hasattr(holder, "optional") else holder
        assert default == ("npugraph_ex" if (package, name) == ("npugraph_ex", "mode") else word.default), name
        optional = getattr(holder, "optional", None)
        if optional is not None:
            assert isinstance(word.takes, tuple) and set(optional) <= set(word.takes), name
            if (package, name) != ("npugraph_ex", "mode"):
                assert set(optional) == set(word.takes), name


@pytest.mark.parametrize("package", CONFIGS)
def test_each_value_is_mapped_satisfied_or_refused(package: str) -> None:
    for name, holder in every(package).items():
        word = BY_NAME[known(name)]
        for value in getattr(holder, "optional", None) or ():
            if word.refused and value != word.default:
                with pytest.raises(OptionError, match="is refused"):
                    ours(known(name), value)
            else:
                resolve(ours(known(name), value))


def another(holder: Any, folder: Path) -> Any:
    """A value that is not the default, and that torch_npu takes."""
    if not hasattr(holder, "optional"):
        return (not holder) if isinstance(holder, bool) else 7 if isinstance(holder, int) else "another"
    if holder.optional:
        return next((v for v in holder.optional if v != holder.default), UNSET)
    (folder / "file.json").touch()
    kind = type(holder).__name__
    values = {
        "IntRangeValue": 7,
        "IntListValue": [7],
        "DictOptionValue": {"a": 7},
        "CallableValue": print,
        "FileValue": str(folder / "file.json"),
        "MustExistedFileAddr": str(folder / "file.json"),
        "MustExistedPathValue": str(folder),
        "RegexValue": "7",
    }
    return values.get(kind, str(folder))


@pytest.mark.parametrize("package", CONFIGS)
def test_each_option_that_was_set_is_read(package: str, tmp_path: Path) -> None:
    assert changed(CONFIGS[package]()) == {}
    for name, holder in every(package).items():
        value = another(holder, tmp_path)
        if value is UNSET:
            continue  # it takes its default only
        config = CONFIGS[package]()
        group = config
        *path, last = name.split(".")
        for step in path:
            group = getattr(group, step)
        setattr(group, last, value)
        assert changed(config) == {known(name): value}, name


@pytest.mark.parametrize("package", CONFIGS)
def test_a_model_runs_with_their_configuration(package: str) -> None:
    config = CONFIGS[package]()
    if package == "torchair":
        config.mode = "reduce-overhead"
        config.experimental_config.frozen_parameter = True
        config.debug.aclgraph.static_capture_size_limit = 2
    else:
        config.frozen_parameter = True
        config.capture_limit = 2
    model = torch.nn.Linear(8, 8).npu()
    torch._dynamo.mark_dynamic(first := torch.randn(2, 8, device="npu"), 0)
    g = torch.compile(model, backend="graphmode", options={"compiler_config": config})
    for n in (2, 3, 4, 5):
        x = first if n == 2 else torch.randn(n, 8, device="npu")
        for _ in range(3):
            assert_same(g(x), model(x))
    assert graphmode.report().graphs == 2 and graphmode.report().replays == 4


def test_npugraph_ex_s_options_move_over_as_they_are() -> None:
    given = {"frozen_parameter": True, "clone_input": False, "inplace_pass": False, "capture_error_mode": "relaxed"}
    theirs = npugraph_ex.CompilerConfig()
    for name, value in given.items():
        setattr(theirs, name, value)  # they take it
    model, x = torch.nn.Linear(8, 8).npu(), torch.randn(2, 8, device="npu")
    g = torch.compile(model, backend="graphmode", options=given)
    for _ in range(3):
        assert_same(g(x), model(x))
    assert graphmode.report().replays == 1
