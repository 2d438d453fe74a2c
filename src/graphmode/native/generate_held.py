"""Writes the table of held kernels at build time, from the operator list that the installed torch ships with torchgen.

Every structured CPU kernel of that list gets an entry, under its functional, in-place and out overload names.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torchgen
from torchgen.gen import get_grouped_native_functions, parse_native_yaml
from torchgen.model import DispatchKey, NativeFunctionsGroup

PARTS = 6  # translation units: each takes about half a minute and a gigabyte to compile


def groups() -> list[tuple[NativeFunctionsGroup, str]]:
    """Structured groups with a structured CPU kernel, with the kernel's name."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    index = parsed.backend_indices[DispatchKey.CPU]
    found = []
    for group in get_grouped_native_functions(parsed.native_functions):
        if isinstance(group, NativeFunctionsGroup) and group.structured:
            kernel = index.get_kernel(group)
            if kernel is not None and kernel.structured:
                found.append((group, kernel.kernel))
    return found


def precomputed_class(name: str, kernel: str, group: NativeFunctionsGroup) -> str:
    """A subclass whose run() passes the values that meta() computed, in the order impl() takes them."""
    pre = group.out.precomputed
    assert pre is not None
    call: list[str] = []
    for i, argument in enumerate(group.functional.func.arguments.flat_all):
        if argument.name in pre.replace:
            call += [f"pre_.{a.name}" for a in pre.replace[argument.name]]
        else:
            call.append(f"arg<{i}>()")
    call += [f"pre_.{a.name}" for a in pre.add or []]
    call += [f"outs_[{i}]" for i in range(len(group.functional.func.returns))]
    return (
        f"struct {name} final : HeldPrecomputed<at::native::structured_{kernel}> {{\n"
        f"  using HeldPrecomputed::HeldPrecomputed;\n"
        f"  void run() override {{ impl({', '.join(call)}); }}\n"
        f"  static std::unique_ptr<Kernel> make(Args a, Outs o) {{ return std::make_unique<{name}>(a, o); }}\n"
        f"}};\n"
    )


def entries(group: NativeFunctionsGroup, kernel: str) -> tuple[str, list[str]]:
    """C++ declarations and table rows of one group."""
    count = len(group.functional.func.returns)
    declaration = ""
    if group.out.precomputed:
        maker = "Pre_" + re.sub(r"\W", "_", str(group.functional.func.name))
        declaration = precomputed_class(maker, kernel, group)
    else:
        maker = f"Held<at::native::structured_{kernel}, {count}>"
    rows = [f'  t["aten::{group.functional.func.name}"] = {{&{maker}::make, {count}, 0}};']
    rows.append(f'  t["aten::{group.out.func.name}"] = {{&{maker}::make, {count}, 0}};')
    if group.inplace is not None:
        rows.append(f'  t["aten::{group.inplace.func.name}"] = {{&{maker}::make, {count}, 1}};')
    return declaration, rows


def main(folder: Path) -> None:
    found = groups()
    for part in range(PARTS):
        mine = found[part::PARTS]
        heads = sorted({f"#include <ATen/ops/{g.out.root_name}_native.h>" for g, _ in mine})
        declarations, rows = [], []
        for group, kernel in mine:
            declaration, lines = entries(group, kernel)
            declarations.append(declaration)
            rows += lines
        text = (
            '// Written by generate_held.py at build time. Do not edit.\n#include "held.h"\n'
            + "\n".join(heads)
            + "\nnamespace graphmode {\nnamespace {\n"
            + "".join(declarations)
            + f"}} // namespace\nvoid register_held_{part}() {{\n  auto& t = held_ops();\n"
            + "\n".join(rows)
            + "\n}\n} // namespace graphmode\n"
        )
        target = folder / f"held_{part}.cpp"
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    calls = "\n".join(f"  register_held_{i}();" for i in range(PARTS))
    declares = "\n".join(f"void register_held_{i}();" for i in range(PARTS))
    text = (
        '// Written by generate_held.py at build time. Do not edit.\n#include "held.h"\nnamespace graphmode {\n'
        f"{declares}\nstd::unordered_map<std::string, HeldOp>& held_ops() {{\n"
        "  static std::unordered_map<std::string, HeldOp> table;\n  return table;\n}\n"
        f"void register_held() {{\n{calls}\n}}\n}} // namespace graphmode\n"
    )
    target = folder / "held_table.cpp"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    main(out)
