"""Engine `inductor`: what torch.compile(backend="inductor") makes of a graph, without Inductor's own CUDA graphs.

Runs on the CPU. Never run on an NPU, whose Inductor is torch_npu's and needs triton-ascend, nor on a GPU or XPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._inductor import config
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._triton import has_triton_package

from graphmode.errors import EngineError
from graphmode.options import Options

WHY_OUTSIDE = "engine inductor: its kernels do not go through PyTorch's dispatcher, so no graph holds them"
_TRITON = {"npu": "triton-ascend", "xpu": "pytorch-triton-xpu"}


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, device: str
) -> Callable[..., Any]:
    """Compiles by Inductor; `mode="max-autotune"` is Inductor's of that name.

    Raises:
        EngineError: there is no C++ compiler for the CPU, or no Triton for another device.
    """
    mode = "max-autotune-no-cudagraphs" if options.mode == "max-autotune" else None
    # torch.compile's own object, and not compile_fx: torch_npu sets its Inductor up in it.
    inductor = torch._TorchCompileInductorWrapper(mode, {"triton.cudagraphs": False}, None)  # type: ignore[no-untyped-call]
    try:
        if device == "cpu":
            cxx = config.cpp.cxx
            cpp_compiler_search(tuple(cxx) if isinstance(cxx, (list, tuple)) else (cxx,))
        compiled: Callable[..., Any] = inductor(gm, example_inputs)
    except InvalidCxxCompiler as error:
        raise EngineError(
            f"engine 'inductor' needs a C++ compiler for the CPU and finds none ({error}): install g++, set CXX to "
            "one, or leave engine out: graphmode's own needs no compiler"
        ) from error
    except Exception as error:
        if device == "cpu" or has_triton_package():
            raise
        package = _TRITON.get(device, "triton")
        raise EngineError(
            f"engine 'inductor' failed for {device}, and Triton, which its kernels there are written in, is not "
            f"installed: pip install {package}, or leave engine out ({type(error).__name__}: {error})"
        ) from error
    return compiled
