"""Has the dispatcher use the emulation's kernels for `device="npu"`."""

from __future__ import annotations

import warnings
from functools import cache


@cache
def register() -> tuple[str, ...]:
    """Takes torch_npu's kernels' place; returns the ATen ops it did that for."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_npu  # noqa: F401

    from ascend_sim import _kernels

    def aten(key: str) -> list[str]:
        registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        return sorted(name[6:] for name in registered if name.startswith("aten::"))

    _kernels.take_over_gradients(aten("AutogradPrivateUse1"))
    return tuple(_kernels.take_over(aten("PrivateUse1")))
