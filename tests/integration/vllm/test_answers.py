"""A few of the answers that answers.py compares: the same tokens with chunks, shared beginnings and preemption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="make install-vllm installs it")

import answers
from answers import Case, Difference

ANSWERS = Path(__file__).with_name("answers.py")
REQUESTS = 24


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What answers.py found for all three settings at once, at two sizes."""
    path = tmp_path_factory.mktemp("vllm") / "rows.json"
    asked = ["--only", "small* all three *", "--batches", "4,8", "--requests", str(REQUESTS), "--rows", str(path)]
    done = subprocess.run([sys.executable, str(ANSWERS), *asked], capture_output=True, text=True, timeout=600)
    assert path.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_graph_mode_answers_as_vllm_does_without_a_compiler(kept: dict[str, Any]) -> None:
    cases = {case.batch: case for case in map(answers.restored, kept.values())}
    assert sorted(cases) == [4, 8]
    for case in cases.values():
        assert case.right() and case.requests == REQUESTS, case
        assert case.report["replays"] > 20 and case.report["live_calls"] == 0 and case.report["fallbacks"] == []
        assert all(case.counted[name] > 0 for name in ("num_preemptions", "prefix_cache_hits", "prompts in chunks"))
    compared = {(d.ours, d.other): d for d in cases[4].differences}
    assert set(compared) == {*answers.EQUAL[1:], answers.NEAR[0]}
    assert all(compared[pair].equal and compared[pair].tokens > 12 * REQUESTS for pair in answers.EQUAL[1:])
    assert compared[answers.NEAR[0]].drift > 0, "the other kernels gave the same bits: nothing was compared"


def engine(*requests: list[tuple[int, float, float]]) -> dict[str, Any]:
    """What an engine found: for each request its tokens, each with its log-probability and that of the next one."""
    return {"answers": [{}, [[[t for t, *_ in r], [[[a, t], [b, 0]] for t, a, b in r]] for r in requests]]}


def test_where_requests_part_the_other_s_margin_counts() -> None:
    eager = engine([(5, -0.1, -3.0), (6, -0.5, -0.75), (7, -0.1, -9.0)], [(5, -0.25, -3.0)])
    ours = engine([(5, -0.1, -3.0), (8, -0.6, -0.65), (9, -0.1, -9.0)], [(5, -0.375, -3.0)])
    found = answers.difference("ours", "eager", {"ours": ours, "eager": eager})
    assert found == Difference("ours", "eager", False, tokens=4, parted=1, margin=0.25, drift=0.125)
    assert answers.difference("eager", "eager", {"eager": eager}) == Difference("eager", "eager", True, tokens=4)


def case(**changed: Any) -> Case:
    """A case that is right, but for what is changed."""
    same = Difference(*answers.EQUAL[1], True, 9)
    usual = {"differences": [same], "errors": {}, "counted": {"num_preemptions": 3}, "report": {"replays": 4}}
    return Case(**{"model": "m", "setting": "plain", "batch": 4, "requests": 3, "threads": [2, 2], **usual, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"differences": []},
        {"differences": [Difference(*answers.EQUAL[1], False, 9, drift=1e-6)]},
        {"differences": [Difference(*answers.EQUAL[1], True), Difference(*answers.NEAR[0], False, margin=0.6)]},
        {"errors": {"graphmode": "an error"}},
        {"counted": {"num_preemptions": 0}},
        {"report": {"replays": 0}},
        {"threads": [1, 2]},
    ],
)
def test_a_case_that_shows_nothing_is_not_right(changed: dict[str, Any]) -> None:
    assert case().right() and not case(**changed).right()


def test_the_page_says_where_answers_differ() -> None:
    differs = case(differences=[Difference(*answers.EQUAL[1], False, 9, 2, 0.75, 0.5)])
    assert "DIFFERS: 2 requests parted, largest margin 0.750" in answers.page([differs], {"sleep": "no"}, "a machine")
    fine = answers.page([case()], {}, "a machine")
    assert "DIFFERS" not in fine and "1 of 1 comparisons" in fine
