"""Python custom ops that misbehave on demand. Owns their switches; conftest does not reset them, each test does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Op = torch.library.custom_op


class OwnError(Exception):
    """An exception that torch knows nothing of."""


class Switches:
    """What the ops below do at their next call."""

    seen: list[float] = []  # values that `note` and `note_only` were called with
    raising: bool = False
    columns_first: bool = False
    inner: Callable[[Tensor], Tensor] = torch.clone
    host: Callable[[Tensor], Any] = float


@Op("gm_contract::note", mutates_args=())
def note(x: Tensor) -> Tensor:
    """Writes its argument's sum down."""
    Switches.seen.append(float(x.sum()))
    return x + 1


@Op("gm_contract::note_only", mutates_args=())
def note_only(x: Tensor) -> None:
    """Writes its argument's sum down and returns nothing."""
    Switches.seen.append(float(x.sum()))


@Op("gm_contract::may_raise", mutates_args=())
def may_raise(x: Tensor) -> Tensor:
    """x + 1, or OwnError."""
    if Switches.raising:
        raise OwnError("on demand")
    return x + 1


@Op("gm_contract::other_strides", mutates_args=())
def other_strides(x: Tensor) -> Tensor:
    """A copy, in rows or in columns."""
    return x.t().contiguous().t() if Switches.columns_first else x.contiguous().clone()


@Op("gm_contract::calls_inner", mutates_args=())
def calls_inner(x: Tensor) -> Tensor:
    """Whatever Switches.inner gives."""
    return Switches.inner(x)


@Op("gm_contract::count_from", mutates_args=("counter",))
def count_from(counter: Tensor, x: Tensor) -> Tensor:
    """Adds one to `counter`, in Python, and returns x * counter."""
    counter.add_(1)
    return x * counter


@Op("gm_contract::double_into", mutates_args=("out",))
def double_into(x: Tensor, out: Tensor) -> None:
    """out = 2 * x."""
    out.copy_(x * 2)


for _op in (note, may_raise, calls_inner):
    _op.register_fake(torch.empty_like)
other_strides.register_fake(lambda x: torch.empty(x.shape))
note_only.register_fake(lambda x: None)
double_into.register_fake(lambda x, out: None)
count_from.register_fake(lambda counter, x: torch.empty_like(x))


_lib = torch.library.Library("gm_contract", "FRAGMENT")
_lib.define("with_total(Tensor x) -> (Tensor, int)")


@torch.library.impl(_lib, "with_total", "CPU")
def with_total(x: Tensor) -> tuple[Tensor, int]:
    """A copy, and the sum as a Python number."""
    return x.clone(), int(x.sum())


@torch.library.register_fake("gm_contract::with_total", lib=_lib)
def _(x: Tensor) -> tuple[Tensor, Any]:
    return torch.empty_like(x), torch.library.get_ctx().new_dynamic_size()


_lib.define("put(Tensor x, Tensor indices, Tensor(a!) out) -> ()")


@torch.library.impl(_lib, "put", "CPU")
def put(x: Tensor, indices: Tensor, out: Tensor) -> None:
    """out[indices] = x's sum, whatever the number of indices."""
    out[indices] = x.sum().to(out.dtype)


@torch.library.register_fake("gm_contract::put", lib=_lib)
def _(x: Tensor, indices: Tensor, out: Tensor) -> None:
    return


_lib.define("double_unseen(Tensor x, Tensor(a!) out) -> ()")


@torch.library.impl(_lib, "double_unseen", "CompositeImplicitAutograd")
def double_unseen(x: Tensor, out: Tensor) -> None:
    """out = 2 * x, by raw memory, as ops of extensions do that are defined and implemented in one call."""
    if not torch.compiler.is_compiling() and type(x) is Tensor:
        out.detach().numpy()[...] = x.detach().numpy() * 2


_lib.define("total(Tensor x) -> int")


@torch.library.impl(_lib, "total", "CPU")
def total(x: Tensor) -> int:
    """The sum as a Python number."""
    return int(x.sum())


@torch.library.register_fake("gm_contract::total", lib=_lib)
def _(x: Tensor) -> Any:
    return torch.library.get_ctx().new_dynamic_size()
