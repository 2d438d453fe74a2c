"""What vllm-ascend's attention records for its updates, by the graph that recorded it.

vllm-ascend keeps it by number of tokens and never takes anything out. A handle of a graph that is gone, or that never
came to be, must not be updated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any

from vllm_ascend.compilation import acl_graph

_LISTS = ("events", "handles", "attn_params")  # of GraphParams: by number of tokens, an entry for each layer


def _all_params() -> list[Any]:
    found = (
        acl_graph.get_graph_params(),
        acl_graph.get_draft_graph_params(),
        acl_graph.get_draft_graph_prefill_params(),
    )
    return [params for params in found if params is not None]


class Updates:
    """The records of the graphs of one wrapper."""

    def __init__(self) -> None:
        self._of: dict[Hashable, list[tuple[list[Any], list[Any]]]] = {}  # by size: (vllm-ascend's list, entries in it)

    @contextlib.contextmanager
    def recorded(self, key: Hashable) -> Iterator[None]:
        """Around a capture: what it adds belongs to that size, and goes again where it fails."""
        before = {id(known): len(known) for known in _lists()}
        try:
            yield
        finally:
            added = [(known, known[before.get(id(known), 0) :]) for known in _lists()]
            self._of[key] = [(known, new) for known, new in added if new]
        for params in _all_params():
            acl_graph.weak_ref_workspaces(params)

    def forget(self, key: Hashable) -> None:
        """The graph of a size is gone, or never came to be."""
        for known, entries in self._of.pop(key, ()):
            gone = {id(entry) for entry in entries}
            known[:] = [entry for entry in known if id(entry) not in gone]

    def of(self, key: Hashable) -> int:
        """How many entries a size has."""
        return sum(len(entries) for _, entries in self._of.get(key, ()))


def _lists() -> list[list[Any]]:
    return [known for params in _all_params() for name in _LISTS for known in getattr(params, name).values()]
