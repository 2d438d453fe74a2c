"""Runs the `python` blocks of a Markdown page, in order, in one namespace.

python tests/docs/run_page.py docs/index.md
"""

import re
import sys
from pathlib import Path
from types import ModuleType

_FENCE = re.compile(r"^```python(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """First line, info string and code of each block."""
    text = page.read_text()
    return [(text[: m.start("code")].count("\n") + 1, m["info"], m["code"]) for m in _FENCE.finditer(text)]


def run(page: Path) -> None:
    """Line numbers stay those of the page, so that a traceback points into it."""
    main = sys.modules["__main__"] = ModuleType("__main__")  # blocks may ask for their __name__
    for line, _, code in blocks(page):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), vars(main))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
