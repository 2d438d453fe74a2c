"""The key `backend="graphmode"` in vLLM's own wrapper of torch.compile, without kernels of vLLM's.

`make test-vllm-0.23` runs it, and the static-graph wrapper's tests, on the version that vllm-ascend builds on.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("vllm", reason="make install-vllm installs it")

from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context

import graphmode


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    graphmode.reset()
    with torch.inference_mode():
        yield
    graphmode.reset()


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Mlp(nn.Module):
    """A model as vLLM's are: decorated, its first dimension the number of tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


@pytest.mark.parametrize("hook", ["0", "1"])
def test_the_key_captures_every_size_of_a_decorated_model(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_BYTECODE_HOOK", hook)
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    mode = CompilationMode.DYNAMO_TRACE_ONCE
    settings = VllmConfig(compilation_config=CompilationConfig(mode=mode, backend="graphmode", custom_ops=["none"]))
    with set_current_vllm_config(settings):
        model = Mlp(vllm_config=settings)
    for _ in range(4):
        for tokens in (7, 2, 5):
            x = torch.randn(tokens, 16)
            with set_forward_context(None, settings):
                got = model(x)
            assert torch.equal(got, model.forward(x))
    report = graphmode.report()
    assert report.graphs >= 3 and report.replays >= 6 and report.live_calls == 0 and report.fallbacks == []
