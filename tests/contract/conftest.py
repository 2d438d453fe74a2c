"""Puts Dynamo, graphmode and every global switch of torch back between tests. Owns no check."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import graphmode

settings.register_profile("contract", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("contract")
logging.getLogger("torch.__trace").propagate = False  # megabytes a test, for pytest to format


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On another device, what only the CPU can keep is skipped, with the reason that its mark gives."""
    if os.environ.get("GRAPHMODE_TEST_DEVICE", "cpu") == "cpu":
        return
    for item in items:
        for mark in item.iter_markers("cpu"):
            item.add_marker(pytest.mark.skip(reason=f"the CPU's alone: {mark.args[0]}"))


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """Nothing compiled, one generator state, eager's default switches, one thread."""
    torch._dynamo.reset()
    graphmode.reset()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_device(os.environ.get("GRAPHMODE_TEST_DEVICE"))
    torch.manual_seed(2013)
    torch.set_num_threads(1)  # workers share the cores; what needs two says so
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    graphmode.reset()
