"""Encoder-decoders of text: source and target in one call, and decoding with caches for both attentions."""

from typing import Any

from .architecture import architecture
from .case import Case
from .decoding import TRANSLATION_WAYS


def seq2seq(name: str, model_class: str, ways: str, **settings: Any) -> list[Case]:
    """One case for each of `ways`: "once", "dynamic", "static"."""
    cases = []
    for way in ways.split():
        fields, drive = TRANSLATION_WAYS[way]
        cases.append(architecture(f"{name}-{way}", "encoder-decoder", model_class, fields, drive=drive, **settings))
    return cases


CASES: list[Case] = [
    *seq2seq("t5", "T5ForConditionalGeneration", "once dynamic static"),
    *seq2seq("mt5", "MT5ForConditionalGeneration", "static"),
    *seq2seq("umt5", "UMT5ForConditionalGeneration", "dynamic"),
    *seq2seq("bart", "BartForConditionalGeneration", "once dynamic static"),
    *seq2seq("mbart", "MBartForConditionalGeneration", "static"),
    *seq2seq("pegasus", "PegasusForConditionalGeneration", "dynamic"),
    *seq2seq("pegasus_x", "PegasusXForConditionalGeneration", "once"),
    *seq2seq("marian", "MarianMTModel", "static"),
    *seq2seq("m2m_100", "M2M100ForConditionalGeneration", "static"),
    *seq2seq("blenderbot", "BlenderbotForConditionalGeneration", "once"),
    *seq2seq("blenderbot-small", "BlenderbotSmallForConditionalGeneration", "static"),
    *seq2seq("led", "LEDForConditionalGeneration", "once"),
    *seq2seq("longt5", "LongT5ForConditionalGeneration", "once"),
    *seq2seq("prophetnet", "ProphetNetForConditionalGeneration", "once"),
    *seq2seq("bigbird_pegasus", "BigBirdPegasusForConditionalGeneration", "once"),
    *seq2seq("plbart", "PLBartForConditionalGeneration", "once"),
    *seq2seq("mvp", "MvpForConditionalGeneration", "once"),
    *seq2seq("fsmt", "FSMTForConditionalGeneration", "once"),
    *seq2seq("switch_transformers", "SwitchTransformersForConditionalGeneration", "once"),
    *seq2seq("nllb-moe", "NllbMoeForConditionalGeneration", "once"),
    *seq2seq("t5gemma", "T5GemmaForConditionalGeneration", "once"),
]
