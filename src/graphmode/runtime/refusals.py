"""What the dispatcher does not see: a raw capture refuses these calls instead of freezing their result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from graphmode.errors import CaptureError
from graphmode.program.lines import line_running

_T = torch.Tensor
_READS: dict[Any, str] = {
    _T.tolist: "tolist() copies values to the host",
    _T.item: "item() reads a value on the host",
    _T.numpy: "numpy() gives the memory to NumPy, whose work is not seen",
    _T.__array__: "NumPy reads the tensor, and its work is not seen",
    _T.__float__: "float() reads a value on the host",
    _T.__int__: "int() reads a value on the host",
    _T.__bool__: "a Python condition reads a value on the host",
    _T.__index__: "a Python index reads a value on the host",
    _T.__contains__: "`in` reads values on the host",
    _T.data_ptr: "data_ptr() gives an address away, and what is done with it is not seen",
    _T.untyped_storage: "untyped_storage() gives the memory away, and what is done with it is not seen",
    _T.storage: "storage() gives the memory away, and what is done with it is not seen",
    _T.__dlpack__: "DLPack gives the memory away, and what is done with it is not seen",
    _T.__deepcopy__: "deepcopy copies memory without an op that could be recorded",
    _T.data.__set__: "setting .data moves a tensor to other memory",  # type: ignore[attr-defined]
}
_SPLITS = (torch.tensor_split, _T.tensor_split)  # their composite reads through a bare pointer
# Composites that compute on bare pointers. Dynamo's fake tensors can't pass them: a raw graph alone could meet them.
_ON_POINTERS = ("fbgemm_", "_sobol_engine_", "choose_qparams_optimized", "_saturate_weight_to_fp16")
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, _T.new_tensor)  # they read tensors inside lists at once


def _holds_a_tensor(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(isinstance(d, _T) or _holds_a_tensor(d) for d in data)


class RefuseUnseen(TorchFunctionMode):
    """Raises CaptureError at a call whose work no recorder could see."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        why = _READS.get(func)
        if func in _SPLITS and any(isinstance(a, _T) for a in (*args[1:], *(kwargs or {}).values())):
            why = "tensor_split at a tensor's values reads them on the host"
        if func in _FROM_DATA and any(_holds_a_tensor(a) for a in (*args, *(kwargs or {}).values())):
            why = f"{func.__name__}() of a list reads the tensors in it on the host: torch.stack makes a call of it"
        if getattr(func, "__name__", "").startswith(_ON_POINTERS):
            why = f"{func.__name__}() computes on bare pointers, and its work is not seen"
        if isinstance(func, torch._ops.HigherOrderOperator):
            why = f"the higher-order op {func} chooses among programs, which a raw graph can't hold"
        if why is not None:
            line = line_running()
            raise CaptureError(
                f"{why} ({line}). Do it before the capture, after replay(), or compile with "
                'backend="graphmode", which runs it live between two graphs',
                why,
                line,
            )
        return func(*args, **(kwargs or {}))
