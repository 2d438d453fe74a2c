"""The site builds strictly, fetches nothing from elsewhere, and names every public thing."""

import dataclasses
import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphmode
from graphmode.inspect.counters import Fallback
from graphmode.inspect.explain import Explanation, RegionRow
from graphmode.inspect.report import Bytes, Report
from graphmode.integrations.ascend_words import WORDS
from graphmode.options import Options

ROOT = Path(__file__).resolve().parents[2]
# Links that a reader follows are no matter; what a page loads by itself is.
_LOADED = re.compile(
    r"""(?:src|data|srcset)=["'](https?:[^"']+)|<link[^>]+href=["'](https?:[^"']+)|url\((https?:[^)]+)\)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    assert [(p.name, m[0]) for p in pages for m in _LOADED.finditer(p.read_text())] == []


def test_tables_come_from_the_code(site: Path) -> None:
    text = (site / "options.html").read_text()
    names = [f.name for f in dataclasses.fields(Options)]
    assert names and all(f"<code>{name}</code>" in text for name in names)
    assert all(f"GRAPHMODE_{name.upper()}" in text for name in names if name != "compiler_config")  # an object
    assert "FallbackError" in text and "<!-- table" not in text


def test_the_words_of_torch_npu_s_backends_are_all_on_their_page(site: Path) -> None:
    text = html.unescape((site / "from-torchair.html").read_text())
    assert "<!-- table" not in text
    cells = [re.sub(r"<[^>]+>|\*", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", text, re.DOTALL)]
    for word in WORDS:
        assert word.says.replace("`", "").replace("*", "") in cells, word.names
    assert [name for word in WORDS for name in word.names if f"<code>{name}</code>" not in text] == []


@pytest.mark.parametrize("record", [Report, Bytes, Fallback, Explanation, RegionRow], ids=lambda c: c.__name__)
def test_every_field_is_explained(record: type) -> None:
    text = (ROOT / "docs/report.md").read_text()
    missing = [f.name for f in dataclasses.fields(record) if f"`{f.name}`" not in text]
    assert missing == []


def test_every_public_name_is_on_a_page() -> None:
    text = "".join(p.read_text() for p in (ROOT / "docs").rglob("*.md"))
    assert [name for name in graphmode.__all__ if not re.search(rf"\b{name}\b", text)] == []
