"""vLLM's CPU platform with graphmode as its compiler. Every other default is vLLM's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm.platforms import cpu_platform_plugin
from vllm.utils.import_utils import resolve_obj_by_qualname

from graphmode.integrations.vllm import pages
from graphmode.integrations.vllm.environment import take_options
from graphmode.integrations.vllm.metrics import serve
from graphmode.integrations.vllm.plugin import log
from graphmode.integrations.vllm.reports import WORKER_EXTENSION

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_WORKERS = {"vllm.v1.worker.cpu_worker.CPUWorker": "graphmode.integrations.vllm.memory.GraphsBesideCache"}
_Cpu: Any = resolve_obj_by_qualname(cpu_platform_plugin())  # the plain one, or AMD's


class GraphmodeCpuPlatform(_Cpu):  # type: ignore[misc]
    """Chooses graphmode where vLLM would choose Inductor by default; what the user chose stays."""

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Called while vLLM fills its configuration, before it decides on a compiler.

        Raises:
            OptionError: `additional_config["graphmode"]` has an unknown option or a bad value.
        """
        from vllm.config import CompilationMode  # it asks for the platform, which is being made while this file loads

        super().apply_config_platform_defaults(vllm_config)
        compilation = vllm_config.compilation_config
        asked = compilation.backend == "graphmode"
        default = compilation.backend in ("", "inductor") and compilation.mode is None
        off = compilation.mode == CompilationMode.NONE  # enforce_eager, too
        off = off or (compilation.mode is None and int(vllm_config.optimization_level) == 0)
        if off or not (asked or default):
            log.info("graphmode leaves compiling to vLLM, as configured: mode %s", compilation.mode)
            return
        take_options(vllm_config)
        if compilation.mode is None:
            compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.backend = "graphmode"
        # Its artifacts would be files that another process loads and runs; a graph is made in the time that takes.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Called when the configuration is complete."""
        from vllm.config import CompilationMode

        super().check_and_update_config(vllm_config)
        compilation = vllm_config.compilation_config
        if compilation.backend == "graphmode" and compilation.mode == CompilationMode.NONE:
            why = "LoRA" if vllm_config.lora_config is not None else "enforce_eager or its configuration"
            log.warning("no graphs: vLLM compiles nothing on the CPU with %s", why)
        elif compilation.backend == "graphmode":
            serve()
            pages.request()
            parallel = vllm_config.parallel_config
            parallel.worker_extension_cls = parallel.worker_extension_cls or WORKER_EXTENSION
            parallel.worker_cls = _WORKERS.get(parallel.worker_cls, parallel.worker_cls)
