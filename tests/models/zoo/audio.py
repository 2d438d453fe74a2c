"""Speech and sound: raw waveforms, spectrograms and codes; encoders, encoder-decoders and vocoders."""

from collections.abc import Mapping
from typing import Any

from .architecture import architecture
from .case import Case
from .fields import Field, normal, right_padding, tokens, waveform


def audio(name: str, model_class: str, fields: Mapping[str, Field], **settings: Any) -> Case:
    return architecture(name, "audio", model_class, fields, **settings)


WAVE = {"input_values": waveform(800)}
TARGET = {"decoder_input_ids": tokens(2, 4)}
PADDED_WAVE = WAVE | {"attention_mask": right_padding(2, 800)}
CHANNEL = {"input_values": normal(1, 1, 1920)}

TINY_VITS = {
    "flow_size": 32,
    "spectrogram_bins": 16,
    "upsample_initial_channel": 16,
    "upsample_rates": (4, 2),
    "upsample_kernel_sizes": (8, 4),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
    "duration_predictor_num_flows": 2,
    "duration_predictor_filter_channels": 16,
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
}
TINY_UNIVNET = {"model_hidden_channels": 8, "kernel_predictor_hidden_channels": 16, "model_in_channels": 16}
TINY_SPEECHT5 = {
    "num_mel_bins": 8,
    "speech_decoder_prenet_units": 16,
    "speech_decoder_postnet_units": 16,
    "speaker_embedding_dim": 16,
    "max_text_positions": 32,
    "max_speech_positions": 64,
    "encoder_max_relative_position": 16,
}

CASES: list[Case] = [
    audio("wav2vec2", "Wav2Vec2ForCTC", PADDED_WAVE),
    audio("hubert", "HubertModel", WAVE),
    audio("wavlm", "WavLMModel", WAVE),
    audio("sew", "SEWModel", WAVE),
    audio("sew-d", "SEWDModel", WAVE),
    audio("unispeech", "UniSpeechModel", WAVE),
    audio("unispeech-sat", "UniSpeechSatModel", WAVE),
    audio("data2vec-audio", "Data2VecAudioModel", WAVE),
    audio("wav2vec2-conformer", "Wav2Vec2ConformerModel", WAVE),
    audio("wav2vec2-bert", "Wav2Vec2BertModel", {"input_features": normal(2, 20, 160)}),
    audio("whisper", "WhisperForConditionalGeneration", {"input_features": normal(2, 80, 128)} | TARGET),
    audio(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        {"input_features": normal(2, 24, 80)} | TARGET,
    ),
    audio(
        "audio-spectrogram-transformer",
        "ASTForAudioClassification",
        {"input_values": normal(2, 32, 32)},
        max_length=32,
        num_mel_bins=32,
        frequency_stride=8,
        time_stride=8,
    ),
    audio("dac", "DacModel", CHANNEL, encoder_hidden_size=8, decoder_hidden_size=64, codebook_size=16),
    audio("univnet", "UnivNetModel", {"input_features": normal(1, 12, 8)}, num_mel_bins=8, **TINY_UNIVNET),
    audio("vits", "VitsModel", {"input_ids": tokens(1, 12)}, **TINY_VITS),
    audio("moonshine", "MoonshineForConditionalGeneration", {"input_values": waveform(1600)} | TARGET),
    audio("musicgen_decoder", "MusicgenForCausalLM", {"input_ids": tokens(8, 10)}, pad_token_id=0),
    audio("parakeet_ctc", "ParakeetForCTC", {"input_features": normal(2, 32, 80)}),
    audio("speecht5", "SpeechT5ForSpeechToText", WAVE | TARGET, **TINY_SPEECHT5),
    audio("pop2piano", "Pop2PianoForConditionalGeneration", {"input_features": normal(2, 10, 32)} | TARGET),
    audio(
        "semantic",
        "BarkSemanticModel",
        {"input_ids": tokens(2, 10)},
        input_vocab_size=128,
        output_vocab_size=128,
    ),
]
