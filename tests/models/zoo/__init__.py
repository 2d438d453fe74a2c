"""The models of the sweep, by name."""

from . import (
    audio,
    decoders,
    dense,
    encoders,
    forecasting,
    moe,
    multimodal,
    nets,
    seq2seq,
    statespace,
    vision,
)
from .case import Case

PARTS = (encoders, decoders, moe, statespace, seq2seq, vision, dense, audio, multimodal, forecasting, nets)
CASES: dict[str, Case] = {case.name: case for part in PARTS for case in part.CASES}
