"""Options in the words of torch_npu's backends, without torch_npu; tests/ascend checks them against the real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphmode
from graphmode.errors import OptionError
from graphmode.integrations.ascend_options import changed, ours, what_it_takes
from graphmode.integrations.ascend_words import WORDS
from graphmode.options import Options, names, options, resolve

DEFAULTS = Options()


class Value:
    """An option as torch_npu's configurations hold it."""

    def __init__(self, value: Any) -> None:
        self._value = value


class Group:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)
        self._fixed_attrs = list(held)


class Dump(Group):
    @property
    def path(self) -> Any:
        return self._path._value


class CompilerConfig(Group):
    """Of torchair's form, as far as these tests need it."""

    def __init__(self) -> None:
        super().__init__(
            mode=Value("max-autotune"),
            debug=Group(run_eagerly=Value(False), aclgraph=Group(static_capture_size_limit=Value(64))),
            dump=Dump(_path=Value(None)),
            ge_config=Group(oo_level=Value("O3")),
            experimental_config=Group(frozen_parameter=Value(False)),
            export_name=None,
        )


def test_every_name_stands_once_and_none_is_ours_but_mode() -> None:
    every = [name for word in WORDS for name in word.names]
    assert len(set(every)) == len(every)
    assert set(every) & set(names()) == {"mode"}


def test_each_word_says_something_and_becomes_an_option_of_ours_or_none() -> None:
    for word in WORDS:
        assert word.says and what_it_takes(word)
        assert word.option is None or (word.option in names() and not word.refused)


@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [
        ({"capture_limit": 7}, {"max_graphs": 7}),
        ({"debug.aclgraph.static_capture_size_limit": 7}, {"max_graphs": 7}),
        ({"force_eager": True}, {"mode": "eager"}),
        ({"force_eager": False}, {}),
        ({"pattern_fusion_pass": False}, {"fuel": 0}),
        ({"pattern_fusion_pass": True}, {}),
        ({"mode": "npugraph_ex"}, {}),
        ({"frozen_parameter": True, "clone_input": False, "clone_output": True, "inplace_pass": False}, {}),
        ({"static_kernel_compile": False, "use_graph_pool": None, "dump_tensor_data": False}, {}),
        ({"capture_limit": 7, "max_graphs": 7, "poison": True}, {"max_graphs": 7, "poison": True}),
    ],
)
def test_a_word_of_theirs_becomes_ours(theirs: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert resolve(theirs) == Options(**wanted)
    with options(**theirs):
        assert resolve() == Options(**wanted)


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ({"static_kernel_compile": True}, "'static_kernel_compile'=True is refused: .* Leave it out"),
        ({"use_graph_pool": (0, 1)}, "'use_graph_pool'=.* max_bytes"),
        ({"dump_tensor_data": True}, "'dump_tensor_data'=True is refused: .* eager"),
        ({"post_grad_custom_pre_pass": print}, "'post_grad_custom_pre_pass'=.* Add a pass"),
        ({"ge_config.oo_level": "O1"}, "'ge_config.oo_level'='O1' is refused: .*engine=\"torchair\""),
        ({"clone_input": "yes"}, "'clone_input' takes True or False; got 'yes'"),
        ({"capture_limit": 0}, "'capture_limit' takes an integer, 1 or more; got 0"),
        ({"clone_inputs": True}, "unknown option 'clone_inputs'"),
        ({"capture_limit": 7, "max_graphs": 8}, "capture_limit=7 is max_graphs=7 here, and max_graphs=8 was given too"),
        (
            {"capture_limit": 7, "debug.aclgraph.static_capture_size_limit": 8},
            "is max_graphs=8 here, and capture_limit=7 was given too",
        ),
        ({"force_eager": True, "mode": "max-autotune"}, "force_eager=True is mode='eager' here"),
        ({"compiler_config": 3}, "'compiler_config' takes a CompilerConfig .*; got 3"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(theirs: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        resolve(theirs)
    with pytest.raises(OptionError, match=says):
        options(**theirs).__enter__()


def test_every_refused_word_is_taken_with_its_default() -> None:
    for word in WORDS:
        for name in word.names:
            assert word.option is not None or ours(name, word.default) == {}


def test_a_configuration_asks_for_what_differs_from_its_defaults() -> None:
    config = CompilerConfig()
    assert changed(config) == {} and resolve({"compiler_config": config}) == DEFAULTS
    config.debug.aclgraph.static_capture_size_limit._value = 9
    config.experimental_config.frozen_parameter._value = True
    config.mode._value = "reduce-overhead"
    config.dump._path._value = "/tmp"
    config.export_name = "mine"
    assert changed(config) == {
        "mode": "reduce-overhead",
        "debug.aclgraph.static_capture_size_limit": 9,
        "dump.path": "/tmp",
        "experimental_config.frozen_parameter": True,
        "export_name": "mine",
    }


def test_a_configuration_is_put_into_our_words() -> None:
    config = CompilerConfig()
    config.debug.aclgraph.static_capture_size_limit._value = 9
    config.mode._value = "reduce-overhead"
    found = resolve({"compiler_config": config, "poison": True})
    assert found == Options(max_graphs=9, poison=True) and found.compiler_config is None
    config.debug.run_eagerly = True  # some of theirs lose their holder when they are set
    assert resolve({"compiler_config": config}).mode == "eager"
    with pytest.raises(OptionError, match="static_capture_size_limit=9 is max_graphs=9 here, and max_graphs=4 was"):
        resolve({"compiler_config": config, "max_graphs": 4})
    config.ge_config.oo_level._value = "O1"
    with pytest.raises(OptionError, match=r"'ge_config.oo_level'='O1' is refused"):
        resolve({"compiler_config": config})


def test_with_the_engine_torchair_a_configuration_is_torchair_s_own() -> None:
    config = CompilerConfig()
    config.ge_config.oo_level._value = "O1"
    assert resolve({"compiler_config": config, "engine": "torchair"}).compiler_config is config
    with options(engine="torchair"):
        assert resolve({"compiler_config": config}).compiler_config is config
    hash(resolve({"compiler_config": config, "engine": "torchair"}))


def test_a_block_s_configuration_gives_way_to_what_is_given() -> None:
    config = CompilerConfig()
    config.debug.aclgraph.static_capture_size_limit._value = 9
    with options(compiler_config=config):
        assert resolve().max_graphs == 9
        assert resolve({"max_graphs": 4}).max_graphs == 4


def test_torch_compile_and_compile_take_them() -> None:
    x = torch.ones(2)
    config = CompilerConfig()
    config.debug.aclgraph.static_capture_size_limit._value = 1
    given: dict[str, Any] = {"frozen_parameter": True, "clone_input": False, "compiler_config": config}
    g = torch.compile(lambda x: x + 1, backend="graphmode", options=given)
    h = graphmode.compile(lambda x: x + 2, **given)
    for _ in range(3):
        assert torch.equal(g(x), x + 1) and torch.equal(h(x), x + 2)
    assert graphmode.report().replays == 2
    with pytest.raises(OptionError, match="static_kernel_compile"):
        torch.compile(lambda x: x + 1, backend="graphmode", options={"static_kernel_compile": True})(x)
