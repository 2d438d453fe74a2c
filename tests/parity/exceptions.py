"""The operators whose values cannot be compared with eager's, each with its reason: the only such lists.

Everything else about them (shape, dtype, strides, inputs, replays) is still checked. At most 1 % of the
operators; `test_parity.py` and the full sweep fail when an entry is not needed any more.
"""

from .samples import DEVICE

_UNWRITTEN = "returns memory that nobody wrote: eager does not equal itself"

EXCEPTIONS: dict[str, str] = {
    "empty": _UNWRITTEN,
    "empty_like": _UNWRITTEN,
    "empty_permuted": _UNWRITTEN,
    "empty_strided": _UNWRITTEN,
    "new_empty": _UNWRITTEN,
    "new_empty_strided": _UNWRITTEN,
}

OF_A_DEVICE: dict[str, dict[str, str]] = {
    "npu": {
        "native_batch_norm": "the emulated device writes no statistics where nobody trains",
        "_native_batch_norm_legit": "the emulated device writes no statistics where nobody trains",
    }
}
"""The same on one kind of device alone."""

EXCEPTIONS |= OF_A_DEVICE.get(DEVICE.type, {})

REWRITTEN_BY_DYNAMO: dict[str, str] = {
    "addcdiv": "Dynamo turns a value into div, mul and add before any backend is asked, also for its own eager one",
}
"""Operators that reach a backend as others, with other last bits. Through torch.compile alone."""
