"""Random programs of in-place, view, multi-output, random and shape-changing calls, and arguments that share memory.

Owns what is drawn; the comparison is in test_random_programs.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

NAMES = ("a", "b", "c")

# Each: name of the result's form, code. Forms: "nm" as the inputs, "mn" transposed, "m" a row, "n1" a column.
PURE: dict[str, list[tuple[str, str]]] = {
    "nm": [
        ("nm", "{x} * 0.5 + {y}"), ("nm", "torch.tanh({x})"), ("nm", "torch.where({x} > {y}, {x}, -{y})"),
        ("nm", "{x}.clone()"), ("nm", "torch.relu({x}).cumsum(0)"), ("nm", "{x}.roll(1, 0)"), ("nm", "{x}.flip(1)"),
        ("nm", "torch.softmax({x}, -1)"), ("nm", "({x} @ {y}.t()).sigmoid() @ {x}"), ("nm", "{x}.detach()"),
        ("nm", "torch.cat([{x}, {y}], 0)[: {x}.shape[0]]"), ("nm", "{x} + torch.rand_like({x})"), ("nm", "{x}[:]"),
        ("nm", "torch.nn.functional.dropout({x}, 0.4)"), ("nm", "{x} * torch.randn({x}.shape)"),
    ("nm", "{x}.exp().clamp(max=9)"),
        ("mn", "{x}.t()"), ("mn", "{x}.mT.contiguous()"), ("m", "{x}[0]"), ("m", "{x}.sum(0)"), ("m", "{x}.amax(0)"),
        ("n1", "{x}.mean(1, keepdim=True)"), ("n1", "{x}[:, :1]"), ("n1", "{x}.narrow(1, {x}.shape[1] - 1, 1)"),
    ],
    "mn": [("nm", "{x}.t()"), ("mn", "{x} * 2"), ("nm", "{x}.t().reshape({x}.shape[1], {x}.shape[0])")],
    "m": [("m", "{x} + 1"), ("m", "torch.exp(-{x}.abs())")],
    "n1": [("n1", "{x}.abs()"), ("n1", "{x} - {x}.max()")],
}  # fmt: skip
TWO: list[tuple[str, str, str]] = [
    ("m", "m", "torch.var_mean({x}, 0)"), ("nm", "nm", "torch.sort({x}, 1)[0], {x} + 1"),
    ("m", "m", "{x}.max(0).values, {x}.min(0).values"),
    ("m", "m", "{x}.unbind(0)[:2]"), ("nm", "nm", "torch.stack([{x}, {y}]).unbind(0)"),
    ("nm", "nm", "torch.cat([{x}, {y}], 1).chunk(2, 1)"),
]  # fmt: skip
WRITES: dict[str, list[str]] = {
    "nm": ["{x}.add_(1)", "{x}.mul_({y})", "{x}.copy_({y}.flip(0))", "{x}.relu_()", "{x}[0] = 3", "{x}[:, 0] += 1",
           "{x}.t()[0].mul_(2)", "{x}.masked_fill_({y} > 0, 0.25)", "{x}.bernoulli_(0.5)", "{x}.view_as({x}).neg_()",
           "{x}.index_add_(0, torch.zeros(1, dtype=torch.int64), {y}[:1])", "{x}.sub_({x}.mean())", "{x}.zero_()"],
    "mn": ["{x}.mul_(0.5)", "{x}[0].fill_(2)"],
    "m": ["{x}.add_(1)", "{x}[0] = 9"],
    "n1": ["{x}.mul_(3)"],
}  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Source of a function of a, b and c, all of the same sizes; its results are some of what it computed."""
    forms = dict.fromkeys(NAMES, "nm")
    lines = []

    def pick(form: str) -> str:
        return draw(
            st.sampled_from(
                [n for n, f in forms.items() if f == form][-4:] + [n for n, f in forms.items() if f == form][:3]
            )
        )

    for i in range(draw(st.integers(3, 9))):
        kind = draw(st.sampled_from(["pure", "pure", "pure", "write", "write", "two"]))
        form = "nm" if kind == "two" else draw(st.sampled_from(sorted(set(forms.values()))))
        names = {"x": pick(form), "y": pick("nm")}
        if kind == "write":
            lines.append(draw(st.sampled_from(WRITES[form])).format(**names))
        elif kind == "two":
            first, second, code = draw(st.sampled_from(TWO))
            lines.append(f"t{i}, u{i} = " + code.format(**names))
            forms |= {f"t{i}": first, f"u{i}": second}
        else:
            result, code = draw(st.sampled_from(PURE[form]))
            lines.append(f"t{i} = " + code.format(**names))
            forms[f"t{i}"] = result
    results = draw(st.lists(st.sampled_from(list(forms)), min_size=1, max_size=4, unique=True))
    return "def f(a, b, c):\n    " + "\n    ".join(lines) + f"\n    return ({', '.join(results)},)\n"


@dataclass(frozen=True)
class Form:
    """How the three arguments of a call lie in memory."""

    rows: int
    columns: int
    layouts: tuple[str, str, str]
    b_is: str  # "apart", "a itself", "a's memory", "shifted by a row"
    dtype: torch.dtype

    def arguments(self, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """The memory behind the arguments, and the arguments."""
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        n, m = self.rows, self.columns
        memory, views = [], []
        for layout in self.layouts:
            base = torch.randn(4 * (n + 2) * (m + 2), generator=generator).to(self.dtype)
            memory.append(base)
            views.append(_lay(base, layout, n, m))
        a = views[0]
        if self.b_is == "a itself":
            views[1] = a
        elif self.b_is == "a's memory":
            views[1] = a.view_as(a)
        elif self.b_is == "shifted by a row":
            views[1] = a.as_strided((n, m), a.stride(), a.storage_offset() + a.stride(0))
        return memory, views


def _lay(base: Tensor, layout: str, n: int, m: int) -> Tensor:
    if layout == "rows":
        return base[: n * m].view(n, m)
    if layout == "columns":
        return base[: n * m].view(m, n).t()
    if layout == "at an offset":
        return base[7 : 7 + n * m].view(n, m)
    return base[3 : 3 + n * (2 * m)].view(n, 2 * m)[:, ::2]


@st.composite
def forms(draw: st.DrawFn) -> Form:
    layout = st.sampled_from(["rows", "rows", "columns", "at an offset", "every other"])
    return Form(
        draw(st.integers(2, 5)),
        draw(st.integers(2, 5)),
        (draw(layout), draw(layout), draw(layout)),
        draw(st.sampled_from(["apart", "apart", "apart", "a itself", "a's memory", "shifted by a row"])),
        draw(st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])),
    )


def function_of(source: str) -> Any:
    """The function that a drawn source defines."""
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(source, "<random program>", "exec"), scope)
    return scope["f"]
