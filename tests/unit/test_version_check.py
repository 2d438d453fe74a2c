"""The check at import: a torch it was not built for is named, with what to install."""

from __future__ import annotations

import pytest
import torch

from graphmode import _C, version_check
from graphmode.errors import UnsupportedError


def test_this_python_and_torch_are_fine() -> None:
    version_check.check()
    assert torch.__version__.startswith(version_check.TORCH + ".")
    assert _C.torch_version.startswith(version_check.TORCH + ".")


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0", "2.130.0", "3.0.0", "2.14.0.dev20260101+cpu"])
def test_another_torch_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UnsupportedError) as caught:
        version_check.check()
    assert version in str(caught.value) and f"torch=={version_check.TORCH}" in str(caught.value)


@pytest.mark.parametrize("version", ["2.13.0", "2.13.1+cpu"])
def test_patch_releases_are_fine(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    version_check.check()
