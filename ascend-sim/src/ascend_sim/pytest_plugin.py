"""Runs a test suite over the emulation: `pytest --ascend-sim`, or ASCEND_SIM=1 in the environment."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ascend-sim", action="store_true", help="emulate Ascend NPUs for torch_npu")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    if early_config.known_args_namespace.ascend_sim or os.environ.get("ASCEND_SIM") == "1":
        import ascend_sim

        ascend_sim.activate()
