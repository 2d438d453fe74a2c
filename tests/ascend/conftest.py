"""Over the emulated NPU, in the environment that `make install-ascend` makes; elsewhere nothing is collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("ascend_sim") else ["test_*.py"]


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    import torch

    import graphmode

    torch._dynamo.reset()
    graphmode.reset()
    torch.manual_seed(2013)
    with torch.no_grad():
        yield
    torch._dynamo.reset()
    graphmode.reset()
