"""vLLM's compiler interface over graphmode's lowering. What it makes is captured by the static-graph wrapper."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import torch.fx as fx
from vllm_ascend.compilation.compiler_interface import AscendCompiler
from vllm_ascend.compilation.graph_fusion_pass_manager import GraphFusionPassManager

import graphmode
from graphmode.backend import graphmode_backend
from graphmode.integrations.vllm.plugin import log

Compiled = Callable[..., Any]


class FusionPasses(GraphFusionPassManager):  # type: ignore[misc]
    """vllm-ascend's fusions, prepared where they are used: tracing their patterns takes its time."""

    def configure(self, config: Any) -> None:
        """Called before anything is compiled."""
        if config.quant_config is not None:
            super().configure(config)


class GraphmodeCompiler(AscendCompiler):  # type: ignore[misc]
    """Lowers one of vLLM's graphs and runs it call by call, without Python; under a capture it is recorded so.

    A quantised model is left to vllm-ascend's compiler, whose fusions are made for it: its code is captured as it is.
    """

    name = "graphmode"

    def compute_hash(self, vllm_config: Any) -> str:
        """Tells vLLM's caches of compiled code apart."""
        theirs = super().compute_hash(vllm_config)
        return sha256(f"graphmode {graphmode.__version__} {theirs}".encode(), usedforsecurity=False).hexdigest()[:10]

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler_config: dict[str, Any],
        compile_range: Any,
        key: str | None = None,
    ) -> tuple[Compiled | None, Any | None]:
        """One graph, for any number of tokens. There is no handle: nothing is written to a cache."""
        if self.vllm_config.quant_config is not None:
            log.info("a quantised model: vllm-ascend's compiler and its fusions stay, and graphmode captures")
            made: tuple[Compiled | None, Any | None]
            made = super().compile(graph, example_inputs, compiler_config, compile_range, key)
            return made
        (output,) = graph.graph.find_nodes(op="output")
        run = graphmode_backend(graph, example_inputs, {"mode": "eager"})
        single = not isinstance(output.args[0], (tuple, list))
        return (_first(run) if single else run), None


def _first(run: Compiled) -> Compiled:
    first = operator.itemgetter(0)

    def only(*args: Any) -> Any:
        return first(run(*args))

    return only
