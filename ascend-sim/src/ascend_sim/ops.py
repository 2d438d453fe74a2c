"""Has the dispatcher use the emulation's kernels for `device="npu"`."""

from __future__ import annotations

import warnings
from functools import cache


@cache
def register() -> tuple[str, ...]:
    """Takes torch_npu's kernels' place; returns the ops it did that for, as "aten::add.Tensor"."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_npu  # noqa: F401

    from ascend_sim import _kernels

    def registered(key: str, *namespaces: str) -> list[str]:
        names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
        return sorted(name for name in names if name.split("::")[0] in namespaces)

    _kernels.take_over_gradients(registered("AutogradPrivateUse1", "aten"))
    return tuple(_kernels.take_over(registered("PrivateUse1", "aten", "npu", "atb")))
