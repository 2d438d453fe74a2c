"""Configurations become small in every part, and keep what makes a part fit its whole."""

from transformers import DetrConfig, DPTConfig, Idefics3Config, LlavaConfig, MaskFormerConfig, PaliGemmaConfig
from zoo.tiny import HIDDEN, LAYERS, VOCAB, tiny


def test_each_part_is_small() -> None:
    config = tiny(LlavaConfig)
    parts = (config.text_config, config.vision_config)
    assert [part.hidden_size for part in parts] == [HIDDEN, HIDDEN]
    assert [part.num_hidden_layers for part in parts] == [LAYERS, LAYERS]


def test_a_part_keeps_what_its_whole_sets() -> None:
    assert tiny(PaliGemmaConfig).vision_config.vision_use_head is False
    assert tiny(MaskFormerConfig).backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_a_given_field_of_a_part_wins() -> None:
    config = tiny(PaliGemmaConfig, vision_config={"vision_use_head": True, "num_hidden_layers": 1})
    assert config.vision_config.vision_use_head is True
    assert config.vision_config.num_hidden_layers == 1
    assert config.vision_config.hidden_size == HIDDEN


def test_a_part_of_another_kind() -> None:
    given = {"model_type": "resnet", "out_features": ["stage4"]}
    for whole in (DetrConfig, DPTConfig):  # DETR has a backbone by default, DPT none
        backbone = tiny(whole, backbone_config=given).backbone_config
        assert backbone.model_type == "resnet"
        assert backbone.hidden_sizes == [16, 32, 48, 64]
        assert backbone.out_features == ["stage4"]


def test_a_part_that_a_whole_leaves_out_stays_out() -> None:
    assert tiny(DPTConfig).backbone_config is None


def test_special_tokens_of_a_part_lie_in_the_vocabulary() -> None:
    pad = tiny(Idefics3Config).text_config.pad_token_id
    assert pad is None or pad < VOCAB
