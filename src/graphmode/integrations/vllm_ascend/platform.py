"""vllm-ascend's NPU platform with graphmode's compiler and graphs. Every other decision is vllm-ascend's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_ascend.platform import NPUPlatform

from graphmode.integrations.vllm.environment import take_options
from graphmode.integrations.vllm.metrics import serve
from graphmode.integrations.vllm.plugin import log
from graphmode.integrations.vllm.reports import WORKER_EXTENSION
from graphmode.options import Options, variable

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_HERE = "graphmode.integrations.vllm_ascend"
_WORKERS = {"vllm_ascend.worker.worker.NPUWorker": f"{_HERE}.worker.GraphmodeNPUWorker"}


class GraphmodeNPUPlatform(NPUPlatform):  # type: ignore[misc]
    """Compiles and captures with graphmode where vllm-ascend would with its own; what the user chose stays."""

    @classmethod
    def get_compile_backend(cls) -> str:
        """Who compiles vLLM's pieces of a model, in mode 3."""
        return f"{_HERE}.compiler.GraphmodeCompiler"

    @classmethod
    def get_pass_manager_cls(cls) -> str:
        """Whose passes vLLM configures before it compiles."""
        return f"{_HERE}.compiler.FusionPasses"

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        """Who captures them."""
        return f"{_HERE}.static_graph.NpuGraphWrapper"

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Called while vLLM fills its configuration.

        Raises:
            OptionError: `additional_config["graphmode"]` has an unknown option or a bad value.
        """
        from vllm.config import CUDAGraphMode  # it asks for the platform, which is being made while this file loads

        super().apply_config_platform_defaults(vllm_config)
        take_options(vllm_config)
        if vllm_config.compilation_config.cudagraph_mode is None:
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
            log.info("decode steps are captured whole, one graph a size; prompts run live, compiled by graphmode")
        # Its artifacts would be files that another process loads and runs; a graph is made in the time that takes.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Called when the configuration is complete."""
        from vllm.config import CUDAGraphMode

        super().check_and_update_config(vllm_config)
        compilation = vllm_config.compilation_config
        if vllm_config.model_config is None:
            return
        if compilation.cudagraph_mode in (None, CUDAGraphMode.NONE):
            log.warning("no graphs: vllm-ascend captures nothing with enforce_eager or its configuration")
            return
        _make_room(2 * len(compilation.cudagraph_capture_sizes or ()))
        serve()
        parallel: Any = vllm_config.parallel_config
        parallel.worker_extension_cls = parallel.worker_extension_cls or WORKER_EXTENSION
        if parallel.worker_cls not in _WORKERS and compilation.cudagraph_mode.has_full_cudagraphs():
            log.warning(
                "full graphs stay vllm-ascend's own: graphmode does not know the worker %s", parallel.worker_cls
            )
        parallel.worker_cls = _WORKERS.get(parallel.worker_cls, parallel.worker_cls)


def _make_room(graphs: int) -> None:
    """vLLM names the sizes it wants: none is dropped for another, unless the user says how many there may be."""
    os.environ.setdefault(variable("max_graphs"), str(max(graphs, Options().max_graphs)))
