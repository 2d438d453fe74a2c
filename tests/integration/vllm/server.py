"""vLLM's server on a small model: `serving(...)` in a test; run as a program, this file is `vllm serve` itself.

It is a program of its own because processes that vLLM spawns load it again, and so know the load format, too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from models import MODELS, register_loader, write_tokenizer  # noqa: E402

LIMITS = ("--max-model-len", "256", "--max-num-seqs", "8", "--num-gpu-blocks-override", "64")
START, STOP = 180.0, 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> str:
        """The body of a page."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a JSON request."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def complete(self, prompt: str | list[int], tokens: int = 8) -> list[str]:
        """The texts of a greedy completion."""
        asked = {"model": "small", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return [c["text"] for c in self.post("/v1/completions", asked)["choices"]]

    def metrics(self, prefix: str) -> dict[str, dict[str, float]]:
        """Samples of `/metrics` whose names begin so: by name, then by the value of the label `rank`."""
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                if sample.name.startswith(prefix):
                    found.setdefault(sample.name, {})[sample.labels.get("rank", "")] = sample.value
        return found

    def processes(self) -> list[int]:
        """Ids of the processes that vLLM runs here, the server's own among them."""
        import psutil

        me = psutil.Process(self.process.pid)
        return [p.pid for p in [me, *me.children(recursive=True)] if "vllm" in p.name().lower() or p == me]


@contextmanager
def serving(
    model: str = "llama", *arguments: str, environment: dict[str, str] | None = None, tokenizer: bool = True
) -> Iterator[Server]:
    """`vllm serve` with a small model of random weights, in processes of its own; ended as Ctrl-C ends it.

    Args:
        model: a name of models.MODELS; it is served under the name `small`.
        *arguments: further ones of `vllm serve`.
        environment: further variables.
        tokenizer: write one of single letters beside the model.

    Raises:
        AssertionError: the server did not start, or did not end; with the end of its log.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as name:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder = Path(name)
        MODELS[model].write(folder, {})
        if tokenizer:
            write_tokenizer(folder)
        log = folder / "server.log"
        command = [sys.executable, str(Path(__file__)), "serve", name, "--served-model-name", "small"]
        command += ["--load-format", "small", "--host", "127.0.0.1", "--port", str(port), *LIMITS, *arguments]
        given = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ, **(environment or {})}
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=given, start_new_session=True)
        try:
            server = Server(f"http://127.0.0.1:{port}", process, log)
            _wait_until_it_answers(server)
            yield server
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"the server did not end:\n{_end(log)}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the session that was started above
                process.wait()


def _wait_until_it_answers(server: Server) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until:
        assert server.process.poll() is None, f"the server ended:\n{_end(server.log)}"
        try:
            server.get("/health")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"the server did not answer in {START:.0f} s:\n{_end(server.log)}")


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-6000:]


def _serve() -> None:
    """What the command `vllm` does for `serve`; the command itself asks for a package named vllm, not vllm-cpu."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser()
    subparsers = parser.add_subparsers(dest="subparser")
    (command,) = cmd_init()
    command.subparser_init(subparsers)
    args = parser.parse_args()
    command.validate(args)
    command.cmd(args)


if __name__ in ("__main__", "__mp_main__"):  # the second where vLLM spawns a process
    register_loader()

if __name__ == "__main__":
    _serve()
