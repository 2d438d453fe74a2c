"""What is compared, bit for bit: every tensor and plain value that a call gives or changes, copied then."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CODE = (type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
_OPAQUE = (nn.Module, torch.Generator, *_CODE)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def leaves(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values inside containers, model outputs, dataclasses and caches, by path."""
    if isinstance(value, (Tensor, *_PLAIN)):
        yield path, value
        return
    if isinstance(value, _OPAQUE) or id(value) in above or _is_configuration(value):
        return
    above = (*above, id(value))
    for key, part in _parts(value):
        yield from leaves(part, f"{path}.{key}" if path else str(key), above)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield from enumerate(sorted(value, key=repr))
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        yield from sorted(getattr(value, "__dict__", {}).items())


def _is_configuration(value: Any) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


def module_state(module: nn.Module) -> dict[str, Any]:
    """Parameters, buffers and the plain public attributes of every submodule."""
    state: dict[str, Any] = {}
    for prefix, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
        own |= {key: value for key, value in vars(part).items() if not key.startswith("_")}
        state[prefix] = own
    return state


@dataclass
class Frozen:
    """A tensor as it was: its values are a copy, `storage` says with whom it shared memory."""

    values: Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: int


@dataclass
class Snapshot:
    """Outputs, arguments, module state and the random state right after one call."""

    values: dict[str, Any]

    @classmethod
    def take(cls, **parts: Any) -> "Snapshot":
        return cls({path: _freeze(leaf) for name, part in parts.items() for path, leaf in leaves(part, name)})


def _freeze(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    storage = leaf.untyped_storage().data_ptr() if leaf.numel() else 0
    return Frozen(leaf.detach().clone().cpu(), leaf.dtype, tuple(leaf.shape), leaf.stride(), storage)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits; any NaN equals any other NaN."""
    a, b = (t.resolve_conj().resolve_neg().contiguous() for t in (a, b))
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    bits = _BITS[a.element_size()]
    same = a.view(bits) == b.view(bits)
    if a.is_floating_point():
        same |= a.isnan() & b.isnan()
    return bool(same.all())


def difference(expected: Snapshot, got: Snapshot) -> str | None:
    """The first thing in which `got` is not `expected`, in words; None when all is equal."""
    if expected.values.keys() != got.values.keys():
        odd = sorted(expected.values.keys() ^ got.values.keys())
        return f"{odd[0]}: only in {'eager' if odd[0] in expected.values else 'compiled'} ({len(odd)} such)"
    for path, want in expected.values.items():
        if said := _unlike(want, got.values[path]):
            return f"{path}: {said}"
    return _other_sharing(expected, got)


def _unlike(want: Any, have: Any) -> str | None:
    if not (isinstance(want, Frozen) and isinstance(have, Frozen)):
        return None if want == have or want != want else f"{want!r} became {have!r}"
    for what in ("dtype", "shape", "stride"):
        if getattr(want, what) != getattr(have, what):
            return f"{what} {getattr(want, what)} became {getattr(have, what)}"
    if same_bits(want.values, have.values):
        return None
    gap = (want.values.to(torch.complex128) - have.values.to(torch.complex128)).abs().nan_to_num()
    return f"values differ by up to {gap.max().item():.3g}"


def _other_sharing(expected: Snapshot, got: Snapshot) -> str | None:
    """Whether other tensors share memory: a view must not become a copy, nor a copy a view."""
    first_of: tuple[dict[int, str], dict[int, str]] = {}, {}
    for path, want in expected.values.items():
        if not isinstance(want, Frozen) or not (want.storage and got.values[path].storage):
            continue
        owners = [
            first.setdefault(frozen.storage, path)
            for first, frozen in zip(first_of, (want, got.values[path]), strict=True)
        ]
        if owners[0] != owners[1]:
            return f"{path}: shares memory with {owners[0]} in eager, with {owners[1]} when compiled"
    return None


def moved(before: Snapshot, after: Snapshot) -> bool:
    """Whether an output differs between two calls, so that handing out the former again would be noticed."""
    outputs = {path for path in before.values.keys() | after.values.keys() if path.startswith("outputs")}
    for path in outputs:
        old, new = before.values.get(path), after.values.get(path)
        if type(old) is not type(new):
            return True
        if isinstance(old, Frozen) and isinstance(new, Frozen):
            alike = old.dtype == new.dtype and old.shape == new.shape
            if not alike or not same_bits(old.values, new.values):
                return True
    return False
