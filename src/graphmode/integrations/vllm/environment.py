"""Options given to vLLM reach the processes that it starts by environment, which they inherit."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from graphmode.errors import OptionError
from graphmode.options import Options, own_options, variable

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def take_options(vllm_config: VllmConfig) -> None:
    """Sets those of `additional_config={"graphmode": {...}}`.

    Raises:
        OptionError: an unknown option or a bad value, or an engine: the models are compiled by graphmode itself.
    """
    given = vllm_config.additional_config
    options = own_options(given.get("graphmode", {}) if isinstance(given, dict) else {})
    options.pop("compiler_config", None)  # in graphmode's words by now
    if options.get("engine", "native") != "native":
        raise OptionError(f"engine={options['engine']!r}: graphmode compiles vLLM's models itself; leave engine out")
    checked = dataclasses.asdict(Options(**options))
    for name in options:
        value = checked[name]
        os.environ[variable(name)] = str(int(value)) if isinstance(value, bool) else str(value)
