"""The command line: `graphmode`, or `python -m graphmode`."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path
from typing import Any

import click
import torch

import graphmode
from graphmode.errors import GraphModeError


@click.group()
def main() -> None:
    """Graph mode for PyTorch: capture a model's work once, replay it, and see what ran outside."""


@main.command()
def version() -> None:
    """Versions of graphmode, torch and Python, and the CPU kernels in use."""
    click.echo(f"graphmode {graphmode.__version__}")
    click.echo(f"torch {torch.__version__}, CPU kernels {torch.backends.cpu.get_cpu_capability()}")
    click.echo(f"Python {platform.python_version()}, {torch.get_num_threads()} threads")


@main.command()
@click.argument("target")
@click.option("--inputs", default=None, help="function in the same module that gives the arguments (default: inputs)")
def explain(target: str, inputs: str | None) -> None:
    """Runs a model and says what was captured and what was not.

    TARGET is `module:name` or `file.py:name`, a model or a function that makes one. The same module's
    `inputs()` gives the arguments: a tensor, a tuple of positional ones, or a dict of keyword ones.
    """
    module = _module(target)
    name = target.partition(":")[2]
    model = _attribute(module, name, target)
    if not isinstance(model, torch.nn.Module) and _makes_model(model):
        model = model()
    given = _attribute(module, inputs or "inputs", target)()
    try:
        if isinstance(given, dict):
            click.echo(str(graphmode.explain(model, **given)))
        else:
            click.echo(str(graphmode.explain(model, *(given if isinstance(given, (tuple, list)) else (given,)))))
    except GraphModeError as error:
        raise click.ClickException(str(error)) from None


@main.command()
def vllm() -> None:
    """Says whether vLLM, as installed here, will run in graph mode, and what is wrong if not."""
    from graphmode.integrations.vllm.check import problems, versions

    click.echo(versions())
    found = problems()
    for problem in found:
        click.echo(f"- {problem}")
    if found:
        raise click.ClickException("vLLM will not run in graph mode as it is installed here; see the lines above")
    click.echo("vLLM runs in graph mode here")


def _module(target: str) -> Any:
    where, _, name = target.partition(":")
    if not name:
        raise click.ClickException(f"TARGET takes module:name or file.py:name; got {target!r}")
    try:
        if where.endswith(".py"):
            path = Path(where).resolve()
            sys.path.insert(0, str(path.parent))
            return importlib.import_module(path.stem)
        sys.path.insert(0, "")
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise click.ClickException(f"can't import {where}: {error}") from None


def _attribute(module: Any, name: str, target: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        raise click.ClickException(f"{target.partition(':')[0]} has no {name!r}") from None


def _makes_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module)


if __name__ == "__main__":
    main()
