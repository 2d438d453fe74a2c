"""A fixed subset of the model sweep, from every family; `sweep.py` runs all of it."""

import os

import pytest
import transformers
import zoo
from proof.row import Row
from proof.worker import run_isolated
from zoo import CASES

BACKEND = os.environ.get("SWEEP_BACKEND", "graphmode")

SUBSET = (
    *("bert", "distilbert", "modernbert"),
    *("llama-prompt", "llama-static", "gpt2-dynamic", "gemma2-static"),
    *("mixtral-static", "deepseek_v3-static"),
    *("mamba-prompt", "lfm2-static"),
    *("t5-once", "bart-static"),
    *("vit", "resnet", "convnext", "segformer"),
    *("wav2vec2", "whisper"),
    *("clip", "llava"),
    "time_series_transformer",
    *("mlp", "kv-cache", "gru-cell-loop", "dropout-train", "item-branch", "routed-experts", "batch-sizes"),
)


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> dict[str, Row]:
    """The rows of the selected cases, run in child processes before the first of them is looked at."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    names = [str(item.callspec.params["name"]) for item in items if item.function is test_identical_to_eager]
    cases = [(name, CASES[name].family) for name in names]
    return {row.name: row for row in run_isolated(cases, BACKEND, timeout=120.0)}


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("models")
@pytest.mark.parametrize("name", SUBSET)
def test_identical_to_eager(name: str, rows: dict[str, Row]) -> None:
    row = rows[name]
    assert row.identical, f"{row.verdict}: {row.detail}\n{row.traceback}"


def test_subset_has_every_family() -> None:
    assert {CASES[name].family for name in SUBSET} == {case.family for case in CASES.values()}


def test_names_are_unique() -> None:
    assert len(CASES) == sum(len(part.CASES) for part in zoo.PARTS)


def test_the_zoo_is_large() -> None:
    classes = {case.model_class for case in CASES.values() if case.model_class}
    types = {getattr(transformers, name).config_class.model_type for name in classes}
    assert len(types) >= 110
    assert sum(not case.model_class for case in CASES.values()) >= 20
