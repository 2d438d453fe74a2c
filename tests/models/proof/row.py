"""One row of the sweep's table: what was found out about a case, as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    IDENTICAL = "identical"
    BRANCH = "identical on the compiled branch"  # the model asks whether it is compiled, see trial.py
    TRACED = "differs when traced"  # as with Dynamo's own eager backend
    DIFFERS = "differs"
    UNCHANGED = "unchanged"
    UNREPLAYED = "unreplayed"
    IRREPRODUCIBLE = "irreproducible"  # eager differs from eager
    EAGER_FAILED = "eager fails"
    FAILED = "failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


@dataclass
class Row:
    name: str
    family: str
    model_type: str = ""
    verdict: Verdict = Verdict.FAILED
    detail: str = ""
    captures: int = 0
    replays: int = 0
    breaks: int = 0
    live_calls: int = 0
    reasons: list[dict[str, Any]] = field(default_factory=list)
    dynamo_graphs: int = 0
    dynamo_breaks: dict[str, int] = field(default_factory=dict)
    dynamo_skipped: int = 0
    seconds: float = 0.0
    eager_seconds: float = 0.0
    compiled_seconds: float = 0.0
    traceback: str = ""

    @property
    def identical(self) -> bool:
        return self.verdict in (Verdict.IDENTICAL, Verdict.BRANCH)

    def read_dynamo(self, counters: Mapping[str, Mapping[str, int]]) -> None:
        """What Dynamo did before a backend was asked: its graphs, breaks, and frames left to Python."""
        self.dynamo_graphs = counters["stats"]["unique_graphs"]
        self.dynamo_skipped = counters["frames"]["total"] - counters["frames"]["ok"]
        for reason, count in counters["unimplemented"].items():
            kind = reason.split("\n")[0]
            self.dynamo_breaks[kind] = self.dynamo_breaks.get(kind, 0) + count

    def read_report(self, report: Any) -> None:
        """Takes over the counters of a `graphmode.report()`; fall-backs with a count become reasons."""
        for name in ("captures", "replays", "breaks", "live_calls"):
            setattr(self, name, int(getattr(report, name)))
        self.reasons = [
            {"reason": f.reason, "op": f.op, "line": f.line, "count": int(f.count)}
            for f in report.fallbacks
            if f.count > 0
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        return cls(**data | {"verdict": Verdict(data["verdict"])})
