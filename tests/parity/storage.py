"""Copies of groups of tensors that keep what a program can see: strides, offsets, lazy bits, shared storage.

Owns cloning and overwriting of tensor groups; it never looks at what an operator does with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def parts(t: Tensor) -> list[Tensor]:
    """The strided tensors that hold `t`'s bytes: `t` itself, or indices and values of a sparse one."""
    if t.layout is torch.sparse_coo:
        return [t._indices(), t._values()]
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [t.crow_indices(), t.col_indices(), t.values()]
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [t.ccol_indices(), t.row_indices(), t.values()]
    return [t]


def flat(t: Tensor) -> Tensor:
    """The whole storage of a strided tensor as one row of its dtype, lazy bits not applied."""
    storage = t.untyped_storage()
    row = torch.empty(0, dtype=t.dtype, device=t.device)
    return row.set_(storage, 0, (storage.nbytes() // t.element_size(),), (1,))


def clone_group(tensors: Sequence[Tensor], device: torch.device | None = None) -> list[Tensor]:
    """Clone the tensors together, to another device if one is given: two that shared a storage share the clone too."""
    copies: dict[int, torch.UntypedStorage] = {}
    return [_clone(t, copies, device or t.device) for t in tensors]


def _clone(t: Tensor, copies: dict[int, torch.UntypedStorage], device: torch.device) -> Tensor:
    if t.layout is not torch.strided or t.is_nested:
        return t.detach().to(device, copy=True)
    source = t.untyped_storage()
    if source._cdata not in copies:
        copies[source._cdata] = torch.UntypedStorage(source.nbytes(), device=device).copy_(source)
    twin = torch.empty(0, dtype=t.dtype, device=device)
    twin.set_(copies[source._cdata], t.storage_offset(), t.size(), t.stride())
    if t.is_conj():
        twin = torch.conj(twin)
    if t.is_neg():
        twin = torch._neg_view(twin)
    return twin


def overwrite(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Give `targets` the values of `sources` in place, byte for byte; both groups have the same layout."""
    for target, source in zip(targets, sources, strict=True):
        for to, origin in zip(parts(target), parts(source), strict=True):
            to.untyped_storage().copy_(origin.untyped_storage())


def same_layout(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether one captured program could serve both groups: same metadata, same sharing of storage."""
    return [_layout(t) for t in a] == [_layout(t) for t in b] and _sharing(a) == _sharing(b)


def _layout(t: Tensor) -> object:
    return (t.layout, tuple(t.shape), [_strided_layout(p) for p in parts(t)])


def _strided_layout(t: Tensor) -> object:
    memory = (t.storage_offset(), t.untyped_storage().nbytes())
    return (t.dtype, tuple(t.shape), t.stride(), memory, t.is_conj(), t.is_neg())


def _sharing(tensors: Sequence[Tensor]) -> list[int]:
    owners: dict[int, int] = {}
    return [owners.setdefault(p.untyped_storage()._cdata, len(owners)) for t in tensors for p in parts(t)]
