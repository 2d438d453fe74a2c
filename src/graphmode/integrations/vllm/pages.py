"""Huge pages for the processes that vLLM starts: a decode step reads every weight once, and address translation shows.

Where Linux gives huge pages on request only (`transparent_hugepage` is `madvise`, the default of most distributions),
nobody requests them: a step of SmolLM2-135M takes 9 to 12 % longer than with them (`docs/design/vllm-step.md`).
"""

from __future__ import annotations

import os

VARIABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # oneDNN's packed weights
    "THP_MEM_ALLOC_ENABLE": "1",  # torch's tensors, and so the key-value cache
}


def request() -> None:
    """Sets the variables, which are read when a process starts: for those started from now on. The user's own stay."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
