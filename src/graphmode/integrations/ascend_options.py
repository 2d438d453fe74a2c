"""Options in the words of torch_npu's backends, put into graphmode's. The words are in `ascend_words`, and only there.

A `CompilerConfig` is read by its attributes: nothing of torch_npu is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphmode.errors import OptionError
from graphmode.integrations.ascend_words import WORDS, Word

_BY_NAME = {name: word for word in WORDS for name in word.names}
_MIRROR = "npugraphex_config."  # where torchair's config has npugraph_ex's words once more
_ABSENT = object()


def is_theirs(name: str) -> bool:
    """Whether an option has this name in npugraph_ex, or at this place in torchair's CompilerConfig."""
    return name in _BY_NAME


def ours(name: str, value: Any) -> dict[str, Any]:
    """What one of their options is in graphmode's words: nothing where it is always so here, or asks for nothing.

    Raises:
        OptionError: the option does not take that value, or nothing here does what it asks for.
    """
    word = _BY_NAME[name]
    if not _takes(word, value):
        raise OptionError(f"option {name!r} takes {what_it_takes(word)}; got {value!r}")
    if word.refused and value != word.default:
        raise OptionError(f"option {name!r}={value!r} is refused: {word.says.replace('`', '')}")
    if word.option is None:
        return {}
    if word.values is None:
        return {word.option: value}
    return {word.option: word.values[value]} if value in word.values else {}


def changed(config: Any) -> dict[str, Any]:
    """What a CompilerConfig, of torchair or of npugraph_ex, has that differs from its defaults: values by name."""
    return {name.removeprefix(_MIRROR): value for name, value in _differences(config, type(config)(), "")}


def what_it_takes(word: Word) -> str:
    """The values of an option, for messages and docs."""
    if isinstance(word.takes, tuple):
        return " or ".join(map(repr, word.takes))
    if isinstance(word.takes, range):
        return f"an integer, {word.takes.start} or more"
    if isinstance(word.takes, type):
        return {str: "a string", list: "a list of integers", dict: "a dict"}[word.takes]
    return word.takes or "anything"


def _takes(word: Word, value: Any) -> bool:
    if value is None or value is word.default:
        return True
    if isinstance(word.takes, (tuple, range)):
        return value in word.takes
    if isinstance(word.takes, type):
        return isinstance(value, (list, tuple) if word.takes is list else word.takes)
    return word.takes is None or callable(value)


def _differences(config: Any, fresh: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    defaults = vars(fresh)
    for attribute, held in vars(config).items():
        if attribute == "_fixed_attrs":
            continue
        public = attribute.removeprefix("_")
        name = prefix + (public if isinstance(getattr(type(config), public, None), property) else attribute)
        default = defaults.get(attribute, _ABSENT)
        if _is_group(default):
            yield from _differences(held, default, f"{name}.")
        elif _value(held) != _value(default):
            yield name, _value(held)


def _is_group(default: Any) -> bool:
    return hasattr(default, "__dict__") and not hasattr(default, "_value") and not callable(default)


def _value(held: Any) -> Any:
    """What an attribute was set to: they keep it in an object of its own, or as it is."""
    return getattr(held, "_value", held)
