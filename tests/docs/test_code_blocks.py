"""Every `python` block of the site and of the README runs: a page's blocks in order, in one fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_page import blocks

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run_page.py")
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("README.md")])


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python without the options that this process may have in its environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRAPHMODE_")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    done = python(str(RUN), str(page), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_command_line_of_the_quick_start(tmp_path: Path) -> None:
    (code,) = [code for _, info, code in blocks(ROOT / "docs/quick-start.md") if "quick.py" in info]
    (tmp_path / "quick.py").write_text(code)
    done = python("-m", "graphmode", "explain", "quick.py:model", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "graphs" in done.stdout


def test_a_failing_block_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nassert 1 == 1\n```\n\n```python\nassert 1 == 2\n```\n")
    done = python(str(RUN), str(page), cwd=tmp_path)
    assert done.returncode != 0
    assert 'page.md", line 8' in done.stderr
