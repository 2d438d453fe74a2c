"""Processes that are the ranks of one group, each with a device of its own. They run functions of the tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ascend_sim

ascend_sim.activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

PATIENCE = 60  # seconds for an answer


class Ranks:
    """`ranks.run(function, *arguments)` calls a function of a module on every rank and gives their results, by rank."""

    def __init__(self, count: int, folder: Path, **environment: object) -> None:
        settings = {
            "ASCEND_SIM_DEVICES": str(count),
            "HCCL_EXEC_TIMEOUT": "20",
            **{name: str(value) for name, value in environment.items()},
        }
        before = dict(os.environ)
        os.environ.update(settings)
        context = multiprocessing.get_context("spawn")
        self._ends, self._processes = [], []
        try:
            for rank in range(count):
                mine, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(rank, count, str(folder / "store"), theirs), daemon=True)
                process.start()
                theirs.close()
                self._ends.append(mine)
                self._processes.append(process)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results by rank.

        Raises:
            AssertionError: a rank raised, ended, or did not answer in time.
        """
        self.ask(function, *arguments)
        return [self.answer(rank) for rank in range(len(self._ends))]

    def ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        """The same without waiting for them."""
        for end in self._ends:
            end.send_bytes(pickle.dumps((function, arguments)))

    def answer(self, rank: int) -> Any:
        """What one rank gives."""
        assert self._ends[rank].poll(PATIENCE), f"rank {rank} does not answer"
        try:
            good, result = pickle.loads(self._ends[rank].recv_bytes())
        except EOFError:
            raise AssertionError(f"rank {rank} ended") from None
        assert good, f"rank {rank}: {result}"
        return result

    def stop(self) -> list[int | None]:
        """Ends all ranks; their exit codes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(20)
            process.kill()
        return [process.exitcode for process in self._processes]


def _serve(rank: int, count: int, store: str, end: Connection) -> None:
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", init_method=f"file://{store}", rank=rank, world_size=count)
    while True:
        try:
            function, arguments = pickle.loads(end.recv_bytes())
        except EOFError:
            break
        try:
            torch.manual_seed(rank)
            answer = True, function(rank, count, *arguments)
        except Exception:
            answer = False, traceback.format_exc()
        end.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
