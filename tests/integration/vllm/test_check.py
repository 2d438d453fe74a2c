"""`graphmode vllm`: what is said where vLLM would not run in graph mode."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("vllm", reason="make install-vllm installs it")

import vllm.version

from graphmode.cli import main
from graphmode.integrations.vllm import check, plugin


def install(folder: Path, name: str, version: str, *requires: str) -> None:
    """What an installer leaves of a package, without the package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return tmp_path


def test_what_is_installed_here_fits() -> None:
    done = CliRunner().invoke(main, ["vllm"])
    assert done.exit_code == 0 and "runs in graph mode here" in done.output and "vllm" in done.output.splitlines()[0]


def test_a_package_built_for_another_torch_is_named(site: Path) -> None:
    install(site, "torchvision", "9.9")
    (site / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (found,) = check.problems()
    assert "torchvision 9.9" in found and "nms does not exist" in found and "pip uninstall torchvision" in found
    done = CliRunner().invoke(main, ["vllm"])
    assert done.exit_code == 1 and "torchvision 9.9" in done.output


def test_a_requirement_of_vllm_s_that_is_not_met_is_named(site: Path) -> None:
    install(site, "vllm", "0.32.7", "numpy<1", "no-such-package>=2", "torch", "not-here; extra == 'x'", "torchcodec")
    numpy, absent = check.problems()
    assert "numpy" in numpy and "'numpy<1'" in numpy
    assert "no-such-package is not installed" in absent


def test_no_vllm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_DISTRIBUTIONS", ("no-such-package",))
    (found,) = check.problems()
    assert "make install-vllm" in found


def test_plugins_that_leave_graphmode_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "ascend")
    (found,) = check.problems()
    assert "VLLM_PLUGINS" in found


def test_a_target_for_which_vllm_asks_no_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    (found,) = check.problems()
    assert "VLLM_TARGET_DEVICE" in found


def test_another_version_is_one_line_and_vllm_s_own_behaviour(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert plugin.platform() is not None
    monkeypatch.setattr(vllm.version, "__version__", "0.23.0")
    monkeypatch.setattr(plugin.log, "propagate", True)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    assert plugin.platform() is None
    (line,) = (r.getMessage() for r in caplog.records)
    assert "made for vLLM 0.32.x and this is 0.23.0" in line


def test_another_platform_goes_first_where_it_is_allowed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "vllm_other", "1.0")
    points = site / "vllm_other-1.0.dist-info" / "entry_points.txt"
    points.write_text("[vllm.platform_plugins]\nother = vllm_other:platform\n")
    assert plugin.platform() is None and "other" in check.problems()[0]
    monkeypatch.setenv("VLLM_PLUGINS", "graphmode")
    assert plugin.platform() is not None and check.problems() == []
