"""The command line: `ascend-sim run COMMAND...`, `ascend-sim check`."""

from __future__ import annotations

import os
import sys

import click

from ascend_sim import missing, runtime


@click.group()
def main() -> None:
    """Ascend's runtime emulated on the host, for the unmodified torch_npu."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--devices", type=click.IntRange(1), help="how many NPUs there are  [default: 2]")
@click.option("--hbm", metavar="BYTES", help="memory of each, as in 512M or 4G  [default: 8G]")
@click.option("--streams", type=click.IntRange(1), help="streams and graphs of each  [default: 1920]")
@click.option("--check", is_flag=True, help="end the program where host code touches device memory")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(devices: int | None, hbm: str | None, streams: int | None, check: bool, command: tuple[str, ...]) -> None:
    """Runs COMMAND with NPUs that are emulated."""
    given = {"DEVICES": devices, "HBM": hbm, "STREAMS": streams, "CHECK": 1 if check else None}
    os.environ |= {f"ASCEND_SIM_{name}": str(value) for name, value in given.items() if value is not None}
    os.environ["ASCEND_SIM"] = "1"
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [str(runtime.FOLDER), os.environ.get("LD_LIBRARY_PATH")]))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise click.ClickException(f"can't run {command[0]}: {error.strerror}") from None


@main.command()
def check() -> None:
    """Says which functions of the runtime torch_npu's libraries name, and which of them are not emulated."""
    found = missing.look()
    for library, names in found.unresolved.items():
        click.echo(f"{library} can't be loaded without: {', '.join(names)}")
    click.echo(f"{len(found.emulated)} functions that torch_npu names are emulated")
    click.echo(f"{len(found.refused)} fail with their name: {', '.join(found.refused)}")
    click.echo(f"{len(found.absent)} are not there, which torch_npu takes as an older CANN: {', '.join(found.absent)}")
    sys.exit(1 if found.unresolved else 0)
