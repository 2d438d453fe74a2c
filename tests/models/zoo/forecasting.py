"""Time series and trajectories."""

from collections.abc import Mapping
from typing import Any

import torch

from .architecture import architecture
from .case import Case
from .fields import Field, fixed, normal, tokens

BATCH, PAST, FUTURE = 2, 24, 4


def series(name: str, model_class: str, fields: Mapping[str, Field], **settings: Any) -> Case:
    return architecture(name, "forecasting", model_class, fields, **settings)


HISTORY = {
    "past_values": normal(BATCH, PAST),
    "past_time_features": normal(BATCH, PAST, 1),
    "past_observed_mask": fixed(torch.ones(BATCH, PAST)),
    "future_values": normal(BATCH, FUTURE),
    "future_time_features": normal(BATCH, FUTURE, 1),
}
LAGS = {"context_length": 17, "prediction_length": FUTURE, "lags_sequence": [1, 2, 7], "num_time_features": 1}
CHANNELS = {"past_values": normal(BATCH, 32, 2)}
EPISODE = {
    "states": normal(BATCH, 6, 5),
    "actions": normal(BATCH, 6, 3),
    "rewards": normal(BATCH, 6, 1),
    "returns_to_go": normal(BATCH, 6, 1),
    "timesteps": tokens(BATCH, 6, low=0, high=32),
    "attention_mask": fixed(torch.ones(BATCH, 6)),
}

CASES: list[Case] = [
    series("time_series_transformer", "TimeSeriesTransformerModel", HISTORY, **LAGS),
    series("informer", "InformerModel", HISTORY, **LAGS),
    series("autoformer", "AutoformerModel", HISTORY, **LAGS),
    series(
        "patchtst",
        "PatchTSTModel",
        CHANNELS,
        num_input_channels=2,
        context_length=32,
        patch_length=4,
        patch_stride=4,
    ),
    series("patchtsmixer", "PatchTSMixerModel", CHANNELS, num_input_channels=2),
    series("decision_transformer", "DecisionTransformerModel", EPISODE, state_dim=5, act_dim=3, max_ep_len=32),
]
