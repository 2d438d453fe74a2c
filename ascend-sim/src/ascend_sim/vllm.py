"""What vllm-ascend needs beyond torch_npu where there is no CANN: `acl`, its own ops, a meaning for Triton kernels.

Nothing of vLLM or vllm-ascend is imported or changed on disk: each part waits for the module that it belongs to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch._functorch.config

from ascend_sim import vllm_custom_ops, vllm_triton

PYACL = Path(__file__).parent / "pyacl"


def _without_its_kernels(extension: ModuleType) -> None:
    """torchvision's wheels on PyPI are built for CUDA's torch: beside a CPU's they lack the two ops they then name."""
    if not extension._has_ops():
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _without_its_cache(_: ModuleType) -> None:
    """Written for PyTorch 2.10, vllm-ascend hands AOTAutograd a graph where the cache of 2.13 wants Inductor's code."""
    torch._functorch.config.enable_autograd_cache = False


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torchvision.extension": _without_its_kernels,  # a patch of vllm-ascend's imports it, for any model
    "vllm_ascend.compilation.compiler_interface": _without_its_cache,
    "vllm.triton_utils.importing": vllm_triton.take_over,
}
INSTEAD: dict[str, Callable[[], object]] = {"vllm_ascend.vllm_ascend_C": vllm_custom_ops.define}


@cache
def install() -> None:
    """Makes `acl` importable, and has the parts wait. For this process; those it starts do it themselves."""
    sys.path.append(str(PYACL))  # last: a real one is taken
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules that something here waits for, as Python would, and those that it stands in for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in AFTER and name not in INSTEAD:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if name in INSTEAD:  # a real one is taken
            return spec or ModuleSpec(name, _StandIn(INSTEAD[name]), origin=__file__)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, AFTER[name])
        return spec


class _StandIn(Loader):
    """An empty module; what its import does is done."""

    def __init__(self, effect: Callable[[], object]) -> None:
        self._effect = effect

    def exec_module(self, module: ModuleType) -> None:
        self._effect()


class _Loader(Loader):
    """Loads a module, then does what waited for it."""

    def __init__(self, loader: Any, after: Callable[[ModuleType], None]) -> None:
        self._loader, self._after = loader, after

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._after(module)

    def __getattr__(self, name: str) -> Any:  # resources, source lines
        return getattr(self._loader, name)
