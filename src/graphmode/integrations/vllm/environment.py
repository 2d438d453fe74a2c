"""Options given to vLLM reach the processes that it starts by environment, which they inherit."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from graphmode.options import Options, check_names, variable

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def take_options(vllm_config: VllmConfig) -> None:
    """Sets those of `additional_config={"graphmode": {...}}`.

    Raises:
        OptionError: an unknown option or a bad value.
    """
    given = vllm_config.additional_config
    options = given.get("graphmode", {}) if isinstance(given, dict) else {}
    check_names(options)
    checked = dataclasses.asdict(Options(**options))
    for name in options:
        value = checked[name]
        os.environ[variable(name)] = str(int(value)) if isinstance(value, bool) else str(value)
