"""Engine `torchair`: Ascend's graph engine (GE), by `torchair.get_npu_backend`: torchair's max-autotune.

Never run: it needs CANN's GE. What is missing is said when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.fx as fx

from graphmode.errors import EngineError, OptionError
from graphmode.options import Options

WHY_OUTSIDE = "engine torchair runs its own graphs"


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, device: str
) -> Callable[..., Any]:
    """Compiles by torchair, with the option `compiler_config` as its configuration.

    Raises:
        EngineError: the inputs are on no NPU, or torchair, GE or a package that they need is missing.
        OptionError: `compiler_config` is npugraph_ex's.
    """
    if device != "npu":
        raise EngineError(
            f"engine 'torchair' compiles for NPUs, and the inputs are on {device}: move model and inputs there with "
            '.npu(), or use engine "native" or "inductor"'
        )
    config = options.compiler_config
    whose = type(config).__module__
    if config is not None and "torchair" not in whose:
        raise OptionError(
            f"engine 'torchair' takes torchair's CompilerConfig; got one of {whose}: make one of torchair's, or leave "
            "engine out"
        )
    try:
        import torchair

        backend = torchair.get_npu_backend(compiler_config=config or torchair.CompilerConfig())
    except ImportError as error:
        missing = str(error).strip().partition("\n")[0]  # torch_npu adds lines of its own
        raise EngineError(
            f"engine 'torchair' needs torch_npu with its torchair, protobuf, and CANN with its graph engine "
            f"(libge_runner.so), whose set_env.sh was sourced; missing: {missing}. Leave engine out: graphmode's own "
            "needs none of them"
        ) from error
    compiled: Callable[..., Any] = backend(gm, example_inputs)
    return compiled
