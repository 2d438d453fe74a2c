"""Builds the emulated libraries, and the kernels as an extension of torch. The rest is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # torch_npu can't be imported before this is built

import torch
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

HERE = Path(__file__).parent
SOURCE = HERE / "src/ascend_sim"
_spec = importlib.util.find_spec("torch_npu")
assert _spec is not None and _spec.submodule_search_locations, "torch_npu is not installed"
TORCH_NPU = Path(next(iter(_spec.submodule_search_locations)))  # found, not imported: it needs what is built here
HEADERS = [TORCH_NPU / "include", TORCH_NPU / "include/third_party/acl/inc", TORCH_NPU / "include/third_party/hccl/inc"]

RUNTIME = "ascendcl"
# Libraries with functions of their own.
OWN = {
    "opapi": ["opapi.cpp"],
    "hccl": ["hccl.cpp", "hccl_communicators.cpp", "hccl_links.cpp", "hccl_reduce.cpp"],
    "atb": ["atb.cpp"],
}
# Opened by name; what torch_npu looks for in them is in another one.
EMPTY = {name: RUNTIME for name in ("acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "runtime")}
EMPTY["hcomm"] = "hccl"
FLAGS = ["-std=c++17", "-O2", "-g0", "-fPIC", "-Wall", "-Wextra", "-fvisibility=hidden", "-shared"]


class Build(BuildExtension):
    """The runtime's libraries first: the kernels are linked to them."""

    def run(self) -> None:
        self.beside_the_sources = self.inplace or self.editable_mode  # setuptools clears it for the build itself
        super().run()

    def build_extensions(self) -> None:
        folder = SOURCE / "lib" if self.beside_the_sources else Path(self.build_lib) / "ascend_sim/lib"
        folder.mkdir(parents=True, exist_ok=True)
        native = SOURCE / "native"
        own = {name for names in OWN.values() for name in names}
        library(folder, RUNTIME, [p for p in sorted(native.glob("*.cpp")) if p.name not in own])
        for name, sources in OWN.items():
            library(folder, name, [native / source for source in sources], RUNTIME)
        for name, other in EMPTY.items():
            library(folder, name, [], other)
        for extension in self.extensions:
            extension.library_dirs.append(str(folder))
            extension.extra_compile_args += ["-include", str(self.headers(extension))]
        super().build_extensions()

    def headers(self, extension: Extension) -> Path:
        """ATen's headers compiled once for all kernels: they are two thirds of what one takes to compile.

        A compiler that finds the compiled ones unfit, or knows none, reads the text beside them.
        """
        text = Path(self.build_temp) / f"headers-{torch.__version__}" / "headers.h"
        compiled = Path(f"{text}.gch")
        if not compiled.exists():
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("#include <ATen/ATen.h>\n")
            command = [os.environ.get("CXX", "c++"), *self.compiler.compiler_so[1:], *extension.extra_compile_args]
            command += [f"-I{path}" for path in include_paths()]
            subprocess.run([*command, "-x", "c++-header", str(text), "-o", str(compiled)], check=True)
        return text.resolve()


def library(folder: Path, name: str, sources: list[Path], other: str = "") -> None:
    """One emulated library, under the name that torch_npu asks for."""
    out = folder / f"lib{name}.so"
    newest = max((p.stat().st_mtime for p in [*sources, *(SOURCE / "native").glob("*.h")]), default=0.0)
    if out.exists() and out.stat().st_mtime > newest:
        return
    command: list[Any] = [os.environ.get("CXX", "g++"), *FLAGS, *(f"-isystem{h}" for h in HEADERS)]
    command += sources or ["-x", "c++", os.devnull]
    command += ["-o", out, f"-Wl,-soname,lib{name}.so", "-Wl,-rpath,$ORIGIN", "-Wl,--no-undefined", "-ldl", "-lpthread"]
    if other:
        command += ["-Wl,--no-as-needed", f"-L{folder}", f"-Wl,-rpath-link,{folder}", f"-l{other}"]
    subprocess.run([str(part) for part in command], check=True)


setup(
    ext_modules=[
        CppExtension(
            "ascend_sim._kernels",
            [str(p.relative_to(HERE)) for p in sorted((SOURCE / "kernels").glob("*.cpp"))],
            include_dirs=[str(h) for h in HEADERS],
            library_dirs=[str(TORCH_NPU / "lib")],
            libraries=["torch_npu", "ascendcl", "opapi"],
            extra_compile_args=[
                "-std=c++20",
                "-O1",
                "-g0",
                "-fvisibility=hidden",
                "-Wall",
                "-Wno-deprecated-declarations",
                "-Wno-sign-compare",  # compiled headers have lost where they ask for it
            ],
            extra_link_args=["-Wl,-rpath,$ORIGIN/lib", "-s"],
        )
    ],
    cmdclass={"build_ext": Build},
)
