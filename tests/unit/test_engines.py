"""Other compilers in place of ours: right results, counted as outside graphs, and errors that say what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import graphmode
from graphmode.errors import EngineError, OptionError
from graphmode.options import resolve


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16)).eval()


def by_inductor(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="graphmode", options={"engine": "inductor", **options})


def test_inductor_gives_the_results_and_every_call_is_counted() -> None:
    model, x = net(), torch.randn(4, 8)
    g = by_inductor(model)
    for _ in range(3):
        torch.testing.assert_close(g(x), model(x))
    r = graphmode.report()
    assert (r.live_calls, r.captures, r.replays, r.warmups) == (3, 0, 0, 0)
    (why,) = r.fallbacks
    assert why.count == 3 and why.reason.startswith("engine inductor:")
    found = graphmode.explain(model, x, options=resolve({"engine": "inductor"}))
    assert found.graphs == 0 and found.replayed_share == 0.0 and "engine inductor" in str(found)


def test_inductor_writes_in_place_and_takes_other_sizes() -> None:
    def step(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache[: x.shape[0]].add_(x)
        return cache.sum() + x.sin()

    g = by_inductor(step, mode="reduce-overhead")
    mine, wanted = torch.zeros(8, 4), torch.zeros(8, 4)
    for n in (2, 3, 5):
        x = torch.randn(n, 4)
        torch.testing.assert_close(g(mine, x), step(wanted, x))
        torch.testing.assert_close(mine, wanted)


def test_inductor_gives_gradients() -> None:
    model, x = net(), torch.randn(4, 8)
    with torch.enable_grad():
        by_inductor(model)(x).sum().backward()
        mine = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(x).sum().backward()
    torch.testing.assert_close(mine, [p.grad for p in model.parameters()])


def test_compile_takes_an_engine() -> None:
    model, x = net(), torch.randn(4, 8)
    g = graphmode.compile(model, engine="inductor")
    for _ in range(2):
        torch.testing.assert_close(g(x), model(x))
    assert graphmode.report().live_calls == 2


def test_mode_eager_asks_no_engine() -> None:
    model, x = net(), torch.randn(4, 8)
    assert torch.equal(by_inductor(model, mode="eager")(x), model(x))
    assert graphmode.report().live_calls == 0


def test_an_engine_has_no_graphs_to_require() -> None:
    with pytest.raises(OptionError, match="require=True forbids what engine='inductor' is"):
        resolve({"engine": "inductor", "require": True})
    with pytest.raises(OptionError, match="'engine' takes 'native' or 'inductor' or 'torchair'; got 'tvm'"):
        resolve({"engine": "tvm"})


def test_without_a_compiler_inductor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(EngineError, match=r"needs a C\+\+ compiler .*no-such-compiler"):
        by_inductor(lambda x: x + 1)(torch.ones(2))


def test_torchair_compiles_for_npus_only() -> None:
    g = torch.compile(lambda x: x + 1, backend="graphmode", options={"engine": "torchair"})
    with pytest.raises(EngineError, match="the inputs are on cpu"):
        g(torch.ones(2))
