"""Generation-like drivers: a prompt, then decode steps of one token through the model's own cache classes.

Tokens are given, not sampled: a wrong step neither hides behind the choice of a token nor spreads by it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache

from .case import Driver, Forward, call_once
from .fields import Field, left_padding, right_padding, tokens

BATCH, PROMPT, STEPS = 2, 6, 4
ROOM = 16
SOURCE = 9


def _decode(forward: Forward, prefill: Forward, cache: Any, mask: Tensor, input_ids: Tensor) -> list[Any]:
    """Prompt, then steps; a growing cache is given as many columns of `mask` as there are tokens."""
    outputs = []
    for end in range(PROMPT, PROMPT + STEPS + 1):
        start, step = (0, prefill) if end == PROMPT else (end - 1, forward)
        result = step(
            input_ids=input_ids[:, start:end],
            attention_mask=mask if isinstance(cache, StaticCache) else mask[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        outputs.append(result.logits)
    return [*outputs, cache]


def _grown(attention_mask: Tensor) -> Tensor:
    """The prompt's mask with ones for the room after it; what lies in the future is masked by causality."""
    return torch.nn.functional.pad(attention_mask, (0, ROOM - attention_mask.shape[1]), value=1)


def dynamic_decode(model: PreTrainedModel) -> Driver:
    """A new DynamicCache for each call; prompt and steps all go through `forward`."""

    def drive(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = DynamicCache(config=model.config)
        return _decode(forward, forward, cache, _grown(kwargs["attention_mask"]), kwargs["input_ids"])

    return drive


def static_decode(model: PreTrainedModel) -> Driver:
    """One StaticCache, reset for each call; the prompt goes through the model itself, as in `generate`."""
    cache = StaticCache(config=model.config, max_cache_len=ROOM)

    def drive(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache.reset()
        return _decode(forward, model, cache, _grown(kwargs["attention_mask"]), kwargs["input_ids"])

    return drive


def static_decode_anew(model: PreTrainedModel) -> Driver:
    """A new StaticCache for each call, so at other addresses each time."""

    def drive(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = StaticCache(config=model.config, max_cache_len=ROOM)
        return _decode(forward, model, cache, _grown(kwargs["attention_mask"]), kwargs["input_ids"])

    return drive


def prompt(length: int) -> Mapping[str, Field]:
    return {"input_ids": tokens(BATCH, length), "attention_mask": left_padding(BATCH, length)}


DECODE_FIELDS: Mapping[str, Field] = {
    "input_ids": tokens(BATCH, PROMPT + STEPS),
    "attention_mask": left_padding(BATCH, PROMPT),
}
WAYS: Mapping[str, tuple[Mapping[str, Field], Callable[[Any], Driver]]] = {
    "prompt": (prompt(PROMPT + STEPS), call_once),
    "dynamic": (DECODE_FIELDS, dynamic_decode),
    "static": (DECODE_FIELDS, static_decode),
    "anew": (DECODE_FIELDS, static_decode_anew),
}


def _translate(model: PreTrainedModel, forward: Forward, cache: EncoderDecoderCache, kwargs: dict[str, Any]) -> Any:
    """The source is encoded once, by the model's own encoder, then each call decodes one token."""
    mask = kwargs["attention_mask"]
    encoded = model.get_encoder()(input_ids=kwargs["input_ids"], attention_mask=mask)
    outputs = []
    for step in range(STEPS + 1):
        result = (forward if step else model)(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=kwargs["decoder_input_ids"][:, step : step + 1],
            past_key_values=cache,
            use_cache=True,
        )
        outputs.append(result.logits)
    return [*outputs, cache]


def dynamic_translation(model: PreTrainedModel) -> Driver:
    """New dynamic caches for self and cross attention for each call."""

    def drive(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        config = model.config.get_text_config(decoder=True)
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        return _translate(model, forward, cache, kwargs)

    return drive


def static_translation(model: PreTrainedModel) -> Driver:
    """Static caches for self and cross attention, kept and reset for each call."""
    config = model.config.get_text_config(decoder=True)
    cache = EncoderDecoderCache(
        StaticCache(config=config, max_cache_len=STEPS + 4), StaticCache(config=config, max_cache_len=SOURCE)
    )

    def drive(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache.reset()
        return _translate(model, forward, cache, kwargs)

    return drive


TRANSLATION_FIELDS: Mapping[str, Field] = {
    "input_ids": tokens(BATCH, SOURCE),
    "attention_mask": right_padding(BATCH, SOURCE),
    "decoder_input_ids": tokens(BATCH, STEPS + 1),
}
TRANSLATION_WAYS: Mapping[str, tuple[Mapping[str, Field], Callable[[Any], Driver]]] = {
    "once": (TRANSLATION_FIELDS, call_once),
    "dynamic": (TRANSLATION_FIELDS, dynamic_translation),
    "static": (TRANSLATION_FIELDS, static_translation),
}
