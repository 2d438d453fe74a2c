"""Huge pages are requested for processes that vLLM starts, and declined in those alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make install-vllm installs it")

from graphmode.integrations.vllm import pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

DECLINES = "from graphmode.integrations.vllm import pages; pages.enough(); print(open('/proc/self/status').read())"


@pytest.fixture(autouse=True)
def nothing_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in pages.VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def allowed(status: str) -> bool:
    return "THP_enabled:\t1" in status


def after_a_start() -> str:
    return subprocess.run([sys.executable, "-c", DECLINES], capture_output=True, text=True, check=True).stdout


def test_a_process_that_is_started_declines_more_and_its_starter_does_not() -> None:
    pages.request()
    pages.enough()
    assert allowed(Path("/proc/self/status").read_text())
    pages.request()  # as each process that completes the configuration does
    assert not allowed(after_a_start())


def test_who_asked_for_huge_pages_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    pages.request()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    assert allowed(after_a_start())


def test_what_a_block_allocates_again_may_be_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(pages, "_allow", asked.append)
    with pages.again():
        assert asked == [True]
    assert asked == [True, False]
