"""Options: defaults, where they come from and in which order, and the text of each error."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import graphmode
from graphmode import GraphModeError, Options, options
from graphmode.errors import OptionError
from graphmode.options import names, resolve, variable


def test_each_option_has_a_default_a_variable_and_a_cost() -> None:
    for f in dataclasses.fields(Options):
        assert f.metadata["cost"]
        assert getattr(Options(), f.name) == f.default
        assert variable(f.name) == f"GRAPHMODE_{f.name.upper()}"


def test_options_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().require = True  # type: ignore[misc]
    assert hash(Options()) == hash(Options())


BAD: list[tuple[dict[str, object], str]] = [
    ({"mode": "fast"}, r"option 'mode' takes 'reduce-overhead' or 'max-autotune' or 'eager'; got 'fast'"),
    ({"capture_after": -1}, r"option 'capture_after' takes an integer, 0 or more; got -1"),
    ({"capture_after": 1.0}, r"option 'capture_after' takes an integer, 0 or more; got 1.0"),
    ({"max_graphs": True}, r"option 'max_graphs' takes an integer, 0 or more; got True"),
    ({"max_bytes": "1 GiB"}, r"option 'max_bytes' takes an integer, 0 or more; got '1 GiB'"),
    ({"require": 1}, r"option 'require' takes True or False; got 1"),
    ({"poison": "yes"}, r"option 'poison' takes True or False; got 'yes'"),
    ({"verify": None}, r"option 'verify' takes True or False; got None"),
    ({"device": 3}, r"option 'device' takes a string; got 3"),
]


@pytest.mark.parametrize(("given", "says"), BAD)
def test_a_bad_value_says_what_the_option_takes(given: dict[str, object], says: str) -> None:
    for call in (lambda: Options(**given), lambda: resolve(given), lambda: options(**given).__enter__()):  # type: ignore[arg-type]
        with pytest.raises(OptionError, match=says):
            call()


def test_an_unknown_name_lists_the_right_ones() -> None:
    for call in (lambda: resolve({"max_graph": 1}), lambda: options(max_graph=1).__enter__()):
        with pytest.raises(OptionError) as caught:
            call()
        assert "'max_graph'" in str(caught.value) and all(n in str(caught.value) for n in names())


def test_errors_are_graphmode_s_and_value_errors() -> None:
    assert issubclass(OptionError, GraphModeError) and issubclass(OptionError, ValueError)


def test_variables_give_values_of_the_right_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHMODE_POISON", "1")
    monkeypatch.setenv("GRAPHMODE_REQUIRE", "false")
    monkeypatch.setenv("GRAPHMODE_MAX_GRAPHS", "7")
    monkeypatch.setenv("GRAPHMODE_MODE", "eager")
    assert resolve() == Options(poison=True, require=False, max_graphs=7, mode="eager")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("POISON", "yes", "GRAPHMODE_POISON takes 1, 0, true or false; got 'yes'"),
        ("MAX_GRAPHS", "many", "GRAPHMODE_MAX_GRAPHS takes an integer; got 'many'"),
        ("MAX_GRAPHS", "-4", "takes an integer, 0 or more; got -4"),
        ("MODE", "quick", "'mode' takes 'reduce-overhead'"),
    ],
)
def test_a_bad_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, text: str, says: str) -> None:
    monkeypatch.setenv(f"GRAPHMODE_{name}", text)
    with pytest.raises(OptionError, match=says):
        resolve()


def test_given_goes_before_the_block_before_the_variable_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve().max_graphs == Options().max_graphs
    monkeypatch.setenv("GRAPHMODE_MAX_GRAPHS", "3")
    assert resolve().max_graphs == 3
    with options(max_graphs=4):
        assert resolve().max_graphs == 4
        assert resolve({"max_graphs": 5}).max_graphs == 5
        with options(poison=True):
            assert (resolve().max_graphs, resolve().poison) == (4, True)
        assert not resolve().poison
    assert resolve().max_graphs == 3


def test_the_block_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), options(max_graphs=4):
        raise KeyError
    assert resolve().max_graphs == Options().max_graphs


def test_a_whole_options_object_is_taken_as_it_is() -> None:
    mine = Options(max_graphs=2)
    with options(max_graphs=9):
        assert resolve(mine) is mine


def compile_and_call(**kwargs: object) -> None:
    torch.compile(lambda x: x + 1, backend="graphmode", **kwargs)(torch.ones(2))  # type: ignore[call-overload]


def test_torch_compile_hands_options_over_and_their_errors_back() -> None:
    for bad in ({"max_graph": 1}, {"max_graphs": -1}):
        with pytest.raises(Exception, match="max_graph") as caught:
            compile_and_call(options=bad)
        assert isinstance(getattr(caught.value, "inner_exception", caught.value), OptionError)
    with pytest.raises(OptionError, match="unknown option 'nonsense'"):
        graphmode.compile(lambda x: x, nonsense=1)


def test_torch_compile_s_mode_is_ours_or_an_error() -> None:
    with pytest.raises(Exception, match="reduce-overhead"):
        compile_and_call(mode="quick")
    compile_and_call(mode="reduce-overhead")


def test_mode_eager_captures_nothing() -> None:
    g = torch.compile(lambda x: x + 1, backend="graphmode", options={"mode": "eager"})
    for _ in range(4):
        assert torch.equal(g(torch.ones(2)), torch.full((2,), 2.0))
    assert (graphmode.report().captures, graphmode.report().replays) == (0, 0)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_capture_after_sets_the_number_of_warm_up_calls(after: int) -> None:
    g = torch.compile(lambda x: x + 1, backend="graphmode", options={"capture_after": after})
    for _ in range(6):
        g(torch.ones(2))
    r = graphmode.report()
    assert (r.warmups, r.captures, r.replays) == (after, 1, 5 - after)
