"""Builds the native part against the installed torch. Everything declarative is in pyproject.toml."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

NATIVE = Path("src/graphmode/native")
GENERATED = Path("build/generated")
# `make install` builds in place, incrementally, and then installs the Python part in editable mode.
PYTHON_ONLY = os.environ.get("GRAPHMODE_PYTHON_ONLY") == "1"

if not PYTHON_ONLY:
    subprocess.run([sys.executable, str(NATIVE / "generate_held.py"), str(GENERATED)], check=True)

# ATen's stubs are called with one pointer per CPU capability that torch was built with.
CAPABILITIES = {
    "x86_64": ["-DHAVE_AVX512_CPU_DEFINITION", "-DHAVE_AVX2_CPU_DEFINITION"],
    "aarch64": ["-DHAVE_SVE_CPU_DEFINITION"],
}
# Loops over rows: as wide as the processor's vectors, and no narrower copy of each for the end of a row.
VECTORS = ["-fvect-cost-model=dynamic", "--param=vect-epilogues-nomask=0"]
VECTORS += ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
if "clang" in os.environ.get("CXX", ""):
    VECTORS = []
# GRAPHMODE_SANITIZE=address|thread builds for a sanitizer.
sanitize = os.environ.get("GRAPHMODE_SANITIZE")
# Unoptimised: built in half the time, and every frame of a report is one of the source's.
extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-O0", "-g1"] if sanitize else ["-g0"]

setup(
    ext_modules=[]
    if PYTHON_ONLY
    else [
        CppExtension(
            "graphmode._C",
            [str(p) for folder in (NATIVE, GENERATED) for p in sorted(folder.glob("*.cpp"))],
            include_dirs=[str(NATIVE.resolve())],
            extra_compile_args=[
                "-std=c++20",
                "-O2",
                "-ftree-vectorize",
                *VECTORS,
                "-ffp-contract=off",  # each operation is rounded by itself
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-Wall",
                "-Werror=return-type",
                *CAPABILITIES.get(platform.machine(), []),
                *extra,
            ],
            extra_link_args=[f"-fsanitize={sanitize}"] if sanitize else ["-s"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
