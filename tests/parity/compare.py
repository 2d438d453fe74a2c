"""The comparer: says every way in which one call differs from eager's, down to the bit.

Owns the meaning of "equal": values (any NaN equals any NaN), dtype, shape, strides, layout, lazy bits,
aliasing among outputs and inputs, inputs after the call, and the state of the random generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .storage import parts

_INT_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Outcome:
    """What one call left behind: its result, its inputs after it, and the generator's state."""

    result: object
    inputs: Sequence[Tensor]
    rng_state: Tensor


@dataclass(frozen=True)
class Difference:
    """One way in which a call differs from eager's; `kind` is one of a few words the tables group by."""

    kind: str
    detail: str


def compare(want: Outcome, got: Outcome, *, values: bool = True, structure: bool = True) -> list[Difference]:
    """Everything in which `got` differs from `want`, nothing when they are equal bit for bit.

    `values=False` compares all but the outputs' values; `structure=False` only the leaves of the results.
    """
    wanted, want_spec = tree_flatten(want.result)
    given, got_spec = tree_flatten(got.result)
    if len(wanted) != len(given) or (structure and want_spec != got_spec):
        return [Difference("structure", f"expected {want_spec}, got {got_spec}")]
    found: list[Difference] = []
    for i, (w, g) in enumerate(zip(wanted, given, strict=True)):
        found += _compare_leaf(f"output {i}", w, g, values)
    for i, (w, g) in enumerate(zip(want.inputs, got.inputs, strict=True)):
        if changed := _compare_leaf(f"input {i} after the call", w, g, True):
            found.append(Difference("mutation", changed[0].detail))
    want_alias, got_alias = _aliasing(wanted, want.inputs), _aliasing(given, got.inputs)
    if want_alias != got_alias:
        found.append(Difference("alias", f"expected {want_alias}, got {got_alias}"))
    if not torch.equal(want.rng_state, got.rng_state):
        found.append(Difference("rng", "the generator is not in the state that eager leaves it in"))
    return found


def same_values(a: object, b: object) -> bool:
    """Whether two results hold the same values, looking at nothing else."""
    left, right = tree_flatten(a)[0], tree_flatten(b)[0]
    return len(left) == len(right) and not any(
        d.kind in ("values", "shape", "structure", "dtype")
        for x, y in zip(left, right, strict=True)
        for d in _compare_leaf("", x, y, True)
    )


def _compare_leaf(where: str, want: object, got: object, values: bool) -> list[Difference]:
    if isinstance(want, Tensor) and isinstance(got, Tensor):
        return _compare_tensor(where, want, got, values)
    if type(want) is not type(got):
        detail = f"{where}: expected a {type(want).__name__}, got a {type(got).__name__}"
        return [Difference("structure", detail)]
    if want == got or (want != want and got != got):
        return []
    return [Difference("values", f"{where}: expected {want!r}, got {got!r}")]


def _compare_tensor(where: str, want: Tensor, got: Tensor, values: bool) -> list[Difference]:
    for kind in ("dtype", "shape", "layout"):
        w, g = getattr(want, kind), getattr(got, kind)
        if w != g:
            return [Difference(kind, f"{where}: expected {kind} {w}, got {g}")]
    found = []
    if type(want) is not type(got):
        found.append(Difference("type", f"{where}: expected {type(want).__name__}, got {type(got).__name__}"))
    if want.requires_grad != got.requires_grad:
        found.append(Difference("grad", f"{where}: expected requires_grad={want.requires_grad}"))
    for w, g in zip(parts(want), parts(got), strict=True):
        found += _compare_strided(where, w, g, values)
    return found


def _compare_strided(where: str, want: Tensor, got: Tensor, values: bool) -> list[Difference]:
    if want.shape != got.shape:
        return [Difference("shape", f"{where}: expected {tuple(want.shape)}, got {tuple(got.shape)}")]
    found = []
    if want.stride() != got.stride():
        found.append(Difference("strides", f"{where}: expected {want.stride()}, got {got.stride()}"))
    if (want.is_conj(), want.is_neg()) != (got.is_conj(), got.is_neg()):
        found.append(Difference("lazy bits", f"{where}: expected {want.is_conj(), want.is_neg()}"))
    if values and (detail := _value_difference(want, got)):
        found.append(Difference("values", f"{where}: {detail}"))
    return found


def _value_difference(want: Tensor, got: Tensor) -> str | None:
    w, g = _dense_row(want), _dense_row(got)
    wbits, gbits = _bits(w), _bits(g)
    if torch.equal(wbits, gbits):
        return None
    unequal = wbits != gbits
    if w.dtype.is_floating_point:
        unequal &= ~(w.float().isnan() & g.float().isnan())
    count = int(unequal.sum())
    if count == 0:
        return None
    at = int(unequal.nonzero()[0])
    return f"{count} of {len(w)} differ, first at {at}: expected {w[at].item()!r}, got {g[at].item()!r}"


def _dense_row(t: Tensor) -> Tensor:
    row = t.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    return torch.view_as_real(row).reshape(-1).contiguous() if row.is_complex() else row.contiguous()


def _bits(row: Tensor) -> Tensor:
    return row.view(_INT_OF_SIZE[row.element_size()])


def _aliasing(leaves: Sequence[object], inputs: Sequence[Tensor]) -> list[str]:
    """For each output whose bytes it shares: an input, with the offset into it, or the first such output."""
    owners: dict[int, str] = {}
    for i, t in enumerate(inputs):
        for address in _addresses(t):
            owners.setdefault(address, f"input {i}")
    found = []
    for i, leaf in enumerate(leaves):
        owner = "nothing"
        if isinstance(leaf, Tensor):
            owner = "+".join(owners.setdefault(address, f"output {i}") for address in _addresses(leaf))
            if owner.startswith("input") and leaf.layout is torch.strided:
                owner += f" at {leaf.storage_offset()}"
        found.append(owner)
    return found


def _addresses(t: Tensor) -> list[int]:
    return [p.untyped_storage().data_ptr() for p in parts(t) if p.untyped_storage().nbytes()]
