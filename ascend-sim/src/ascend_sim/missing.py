"""What torch_npu's libraries name, against what is emulated: for a new version of torch_npu."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ascend_sim import runtime

OURS = re.compile(
    r"^(acl(rt|mdl|op|sys|Init|Finalize|Get|Set|App|Create|Destroy|Gen)\w*|rt[A-Z]\w+|Msprof\w+|Hccl[A-Z]\w+|_ZN3atb\w+)$"
)
LIBRARIES = ("libtorch_npu.so", "libop_plugin_atb.so", "libtensorpipe.so", "libnpu_profiler.so")


@dataclass
class Found:
    """Names of functions."""

    emulated: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unresolved: dict[str, list[str]] = field(default_factory=dict)  # by library: without them it is not loaded


def look() -> Found:
    """Reads the libraries' symbols and strings with nm."""
    spec = importlib.util.find_spec("torch_npu")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    defined = {n for p in runtime.FOLDER.glob("*.so") for n in _symbols(p, "--defined-only")}
    absent_file = Path(__file__).parent / "native/absent.cpp"
    refused = (
        set(re.findall(r"^ABSENT(?:_POINTER)?\((\w+)\)", absent_file.read_text(), re.M))
        if absent_file.exists()
        else set()
    )
    found = Found()
    for name in LIBRARIES:
        missing = [n for n in _symbols(folder / name, "--undefined-only") if OURS.match(n) and n not in defined]
        if missing:
            found.unresolved[name] = sorted(missing)
    text = (folder / "libtorch_npu.so").read_bytes()
    looked_up = {m.decode() for m in re.findall(rb"(?<=\0)(?:aclrt|aclmdlRI|aclsys)[A-Za-z0-9]+(?=\0)", text)}
    named = looked_up | {n for n in _symbols(folder / "libtorch_npu.so", "--undefined-only") if OURS.match(n)}
    found.emulated = sorted(n for n in named if n in defined and n not in refused)
    found.refused = sorted(n for n in named if n in refused)
    found.absent = sorted(named - defined)
    return found


def _symbols(path: Path, which: str) -> set[str]:
    out = subprocess.run(["nm", "-D", which, str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in out.splitlines() if line}
