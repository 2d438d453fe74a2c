"""Two or more modalities: contrastive pairs, language models that read images, documents."""

from collections.abc import Mapping
from typing import Any

import torch

from .architecture import architecture
from .case import Case
from .fields import Field, fixed, image, normal, placed, right_padding, tokens, uniform, uniform_boxes

BATCH, LENGTH = 2, 12
IMAGE_TOKEN = 4

TEXT: Mapping[str, Field] = {
    "input_ids": tokens(BATCH, LENGTH),
    "attention_mask": right_padding(BATCH, LENGTH),
}
PIXELS: Mapping[str, Field] = {"pixel_values": image(BATCH)}


def pair(name: str, model_class: str, more: Mapping[str, Field] | None = None, **settings: Any) -> Case:
    """A model of an image and a text beside it."""
    return architecture(name, "multimodal", model_class, {**TEXT, **PIXELS, **(more or {})}, **settings)


def reader(name: str, model_class: str, count: int, more: Mapping[str, Field] | None = None, **settings: Any) -> Case:
    """A language model whose prompt has `count` places that an image fills."""
    length = LENGTH + count
    fields: dict[str, Field] = {
        "input_ids": placed(tokens(BATCH, length), IMAGE_TOKEN, 2, count),
        "attention_mask": right_padding(BATCH, length),
    }
    return architecture(name, "multimodal", model_class, {**fields, **PIXELS, **(more or {})}, **settings)


PATCHES = {
    "pixel_values": normal(BATCH, 16, 3 * 8 * 8),
    "pixel_attention_mask": fixed(torch.ones(BATCH, 16, dtype=torch.int32)),
    "spatial_shapes": fixed(torch.full((BATCH, 2), 4)),
}
GRID = {
    "pixel_values": normal(BATCH * 16, 3 * 2 * 8 * 8),
    "image_grid_thw": fixed(torch.tensor([[1, 4, 4]] * BATCH)),
    "mm_token_type_ids": placed(fixed(torch.zeros(BATCH, LENGTH + 4, dtype=torch.int32)), 1, 2, 4),
}
SEVERAL = {"pixel_values": normal(BATCH, 1, 3, 32, 32)}
BOXES = {"bbox": uniform_boxes(BATCH, LENGTH)}
REGIONS = {"visual_feats": normal(BATCH, 5, 16), "visual_pos": uniform(BATCH, 5, 4)}
TARGET = {"decoder_input_ids": tokens(BATCH, 4)}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}

CASES: list[Case] = [
    pair("clip", "CLIPModel"),
    pair("siglip", "SiglipModel"),
    pair("siglip2", "Siglip2Model", PATCHES, vision_config={"num_patches": 16}),
    pair("metaclip_2", "MetaClip2Model"),
    pair("blip", "BlipForConditionalGeneration"),
    pair("git", "GitForCausalLM"),
    pair("vilt", "ViltModel"),
    pair("clipseg", "CLIPSegForImageSegmentation", extract_layers=(0, 1), reduce_dim=16),
    pair("owlvit", "OwlViTForObjectDetection"),
    pair("owlv2", "Owlv2ForObjectDetection"),
    pair("groupvit", "GroupViTModel"),
    pair("altclip", "AltCLIPModel"),
    pair("chinese_clip", "ChineseCLIPModel"),
    pair("flava", "FlavaModel"),
    pair(
        "bridgetower",
        "BridgeTowerModel",
        hidden_size=64,
        text_config={"hidden_size": 64},
        vision_config={"hidden_size": 64},
    ),
    pair("layoutlmv3", "LayoutLMv3Model", BOXES, coordinate_size=6, shape_size=4, input_size=32),
    pair("udop", "UdopForConditionalGeneration", {**BOXES, **TARGET}),
    architecture(
        "lxmert",
        "multimodal",
        "LxmertModel",
        {**TEXT, **REGIONS},
        visual_feat_dim=16,
        l_layers=1,
        x_layers=1,
        r_layers=1,
    ),
    architecture("trocr", "multimodal", "TrOCRForCausalLM", TEXT),
    reader("blip-2", "Blip2ForConditionalGeneration", 4, image_token_index=IMAGE_TOKEN, num_query_tokens=4),
    reader(
        "instructblip",
        "InstructBlipForConditionalGeneration",
        4,
        {"qformer_input_ids": tokens(BATCH, 6)},
        image_token_index=IMAGE_TOKEN,
        num_query_tokens=4,
    ),
    reader("llava", "LlavaForConditionalGeneration", 16, image_token_index=IMAGE_TOKEN),
    reader(
        "vipllava",
        "VipLlavaForConditionalGeneration",
        16,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layers=(-1, -2),
    ),
    reader("paligemma", "PaliGemmaForConditionalGeneration", 16, image_token_index=IMAGE_TOKEN),
    reader("idefics3", "Idefics3ForConditionalGeneration", 4, SEVERAL, image_token_id=IMAGE_TOKEN),
    reader("smolvlm", "SmolVLMForConditionalGeneration", 4, SEVERAL, image_token_id=IMAGE_TOKEN),
    reader(
        "internvl",
        "InternVLForConditionalGeneration",
        4,
        image_token_id=IMAGE_TOKEN,
        vision_config={"patch_size": (8, 8)},
    ),
    reader("qwen2_vl", "Qwen2VLForConditionalGeneration", 4, GRID, image_token_id=IMAGE_TOKEN, text_config=ROPE),
    reader(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        4,
        GRID,
        vision_config={"out_hidden_size": 32},
        image_token_id=IMAGE_TOKEN,
        text_config=ROPE,
    ),
]
