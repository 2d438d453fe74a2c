"""What happened in this process: counters per compiled region, and every fall-back with its reason and the user's line.

Owns the numbers; decides nothing. `report()` is made from it.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from graphmode.devices.adapter import DeviceGraph, GraphBytes


@dataclass
class Fallback:
    """Something that ran outside a graph."""

    reason: str
    op: str | None
    line: str | None
    count: int = 0


@dataclass
class Counters:
    """Counts of one compiled region, or of all that are gone."""

    graphs: int = 0
    captures: int = 0
    replays: int = 0
    breaks: int = 0
    live_calls: int = 0
    warmups: int = 0
    evictions: int = 0
    capture_seconds: float = 0.0
    lower_seconds: float = 0.0
    updates: int = 0  # replays whose captured calls were given other integers first
    fused: Counter[str] = field(default_factory=Counter)  # groups of calls that became one of the device's, by kind
    notes: dict[str, int] = field(default_factory=dict)  # what was done otherwise than asked, and is no fall-back
    fallbacks: dict[tuple[str, str | None, str | None], Fallback] = field(default_factory=dict)

    def fall_back(self, reason: str, op: str | None = None, line: str | None = None, count: int = 1) -> Fallback:
        """Counts a fall-back; equal ones are counted together."""
        entry = self.fallbacks.setdefault((reason, op, line), Fallback(reason, op, line))
        entry.count += count
        return entry

    def note(self, what: str, count: int = 1) -> None:
        """Counts something done otherwise than asked that is no fall-back."""
        self.notes[what] = self.notes.get(what, 0) + count

    def add(self, other: Counters) -> None:
        """Adds another region's counts to these."""
        for name in ("graphs", "captures", "replays", "breaks", "live_calls", "warmups", "evictions", "updates"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.capture_seconds += other.capture_seconds
        self.lower_seconds += other.lower_seconds
        self.fused.update(other.fused)
        for reason, count in list(other.notes.items()):
            self.note(reason, count)
        for f in list(other.fallbacks.values()):
            self.fall_back(f.reason, f.op, f.line, f.count)


class ReplayCount(Protocol):
    """Where replays are counted: by native code, or by `Replays`."""

    replays: int


@dataclass
class Replays:
    """Replays of graphs that no native runner replays."""

    replays: int = 0


class Counted(Protocol):
    """What holds graphs and is counted: a compiled region, or the static graphs of a callable."""

    number: int
    counters: Counters
    on_death: weakref.finalize[..., Any] | None

    @property
    def replayed(self) -> ReplayCount: ...
    @property
    def graphs(self) -> Mapping[int, DeviceGraph]: ...
    @property
    def breaks(self) -> Sequence[tuple[str, str, str]]: ...
    @property
    def stretches(self) -> Sequence[Any]: ...
    def bytes(self) -> list[GraphBytes]: ...
    def count(self) -> Counters: ...
    def clear(self) -> None: ...
    def __hash__(self) -> int: ...


class Ledger:
    """All regions alive, and the sum of those that died."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._regions: weakref.WeakSet[Counted] = weakref.WeakSet()
        self.gone = Counters()

    def enter(self, region: Counted) -> None:
        """Registers a region; when it dies its counts stay in the sum."""
        with self._lock:
            self._regions.add(region)

        counters, replayed = region.counters, region.replayed

        def bury() -> None:
            with self._lock:
                counters.graphs = 0
                counters.replays += replayed.replays
                self.gone.add(counters)

        region.on_death = weakref.finalize(region, bury)
        region.on_death.atexit = False

    def regions(self) -> list[Counted]:
        """The regions alive, oldest first."""
        with self._lock:
            return sorted(self._regions, key=lambda r: r.number)

    def fixed_bytes(self) -> int:
        """Bytes of constants that all graphs hold."""
        return sum(b.fixed for r in self.regions() for b in r.bytes())

    def calls(self) -> int:
        """Calls that reached any region."""
        with self._lock:
            counts = [self.gone, *(r.count() for r in self._regions)]
        return sum(c.warmups + c.captures + c.replays + c.live_calls + c.breaks for c in counts)

    def clear(self) -> None:
        """Zeroes every counter."""
        with self._lock:
            self.gone = Counters()
            for region in self._regions:
                region.counters.__init__()  # type: ignore[misc]
                region.replayed.replays = 0


ledger = Ledger()
