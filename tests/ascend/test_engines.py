"""Engines that need what is not here, Triton for Ascend and GE: the error says what is missing and how to get it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from graphmode.errors import EngineError, OptionError


def run(engine: str, **options: object) -> torch.Tensor:
    g = torch.compile(lambda x: x * 2 + 1, backend="graphmode", options={"engine": engine, **options})
    return g(torch.ones(4, device="npu"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_inductor_without_triton() -> None:
    with pytest.raises(EngineError, match="pip install triton-ascend"):
        run("inductor")


def test_torchair_without_ge() -> None:
    with pytest.raises(EngineError, match=r"missing: .*(protobuf|libfmk_parser).*\. Leave engine out"):
        run("torchair")


def test_torchair_takes_no_configuration_of_npugraph_ex() -> None:
    import npugraph_ex

    with pytest.raises(OptionError, match="takes torchair's CompilerConfig; got one of npugraph_ex"):
        run("torchair", compiler_config=npugraph_ex.CompilerConfig())
