"""Image and video encoders: transformers and convolutional nets."""

from collections.abc import Mapping
from typing import Any

from .architecture import architecture
from .case import Case
from .fields import Field, image, normal, tokens
from .tiny import IMAGE

BATCH = 2


def vision(name: str, model_class: str, *turns: Mapping[str, Field], **settings: Any) -> Case:
    return architecture(name, "vision", model_class, *(turns or (PIXELS,)), **settings)


PIXELS: Mapping[str, Field] = {"pixel_values": image(BATCH)}
LARGE = {"pixel_values": image(BATCH, 64)}
VIDEO = {"pixel_values": normal(BATCH, 2, 3, IMAGE, IMAGE)}
EFFICIENT = {
    "initializer_range": 0.5,
    "hidden_dim": 160,
    "width_coefficient": 0.125,
    "depth_coefficient": 0.25,
}
STAGES = {
    "stem_channels": (3, 8, 8),
    "stage_in_channels": (8, 16, 24, 32),
    "stage_mid_channels": (8, 8, 16, 16),
    "stage_out_channels": (16, 24, 32, 64),
    "stage_numb_of_layers": (1, 1, 1, 1),
    "stage_num_blocks": (1, 1, 1, 1),
}

CASES: list[Case] = [
    vision("vit", "ViTForImageClassification"),
    vision("deit", "DeiTModel"),
    vision("beit", "BeitModel"),
    vision("data2vec-vision", "Data2VecVisionModel"),
    vision("swin", "SwinModel", patch_size=4, window_size=4, depths=(1, 1), num_heads=(2, 2)),
    vision("swinv2", "Swinv2Model", patch_size=4, window_size=4, depths=(1, 1), num_heads=(2, 2)),
    vision("convnext", "ConvNextForImageClassification", patch_size=4),
    vision("convnextv2", "ConvNextV2Model", patch_size=4),
    vision("resnet", "ResNetForImageClassification"),
    vision(
        "resnet-sizes",
        "ResNetModel",
        *({"pixel_values": image(*s)} for s in ((2, 32), (1, 32), (1, 48))),
        calls=12,
    ),
    vision("regnet", "RegNetModel"),
    vision("mobilenet_v1", "MobileNetV1Model", depth_multiplier=0.25),
    vision("mobilenet_v2", "MobileNetV2Model", depth_multiplier=0.25),
    vision(
        "mobilevit",
        "MobileViTModel",
        LARGE,
        patch_size=2,
        initializer_range=0.3,
        neck_hidden_sizes=(8, 8, 16, 16, 24, 24, 32),
    ),
    vision(
        "mobilevitv2",
        "MobileViTV2Model",
        LARGE,
        patch_size=2,
        initializer_range=0.3,
        width_multiplier=0.25,
        n_attn_blocks=(1, 1, 1),
    ),
    vision("levit", "LevitModel", LARGE, image_size=64, patch_size=16),
    vision("poolformer", "PoolFormerModel"),
    vision("pvt", "PvtModel"),
    vision("pvt_v2", "PvtV2Model"),
    vision("cvt", "CvtModel"),
    vision("focalnet", "FocalNetModel", patch_size=4),
    vision("dinov2", "Dinov2Model"),
    vision("dinov2_with_registers", "Dinov2WithRegistersModel"),
    vision("dinov3_vit", "DINOv3ViTModel"),
    vision("dinov3_convnext", "DINOv3ConvNextModel", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    vision("efficientnet", "EfficientNetModel", **EFFICIENT),
    vision("hiera", "HieraModel"),
    vision("ijepa", "IJepaModel"),
    vision("vit_msn", "ViTMSNModel"),
    vision(
        "vit_mae",
        "ViTMAEForPreTraining",
        decoder_hidden_size=32,
        decoder_num_attention_heads=4,
        decoder_num_hidden_layers=1,
    ),
    vision("vitdet", "VitDetModel"),
    vision("swiftformer", "SwiftFormerModel"),
    vision("bit", "BitModel", num_groups=4),
    vision("textnet", "TextNetModel", LARGE, hidden_sizes=(16, 16, 24, 32, 48), stem_out_channels=16),
    vision("imagegpt", "ImageGPTModel", {"input_ids": tokens(BATCH, 16)}),
    vision("timesformer", "TimesformerModel", VIDEO, num_frames=2),
    vision("videomae", "VideoMAEModel", VIDEO, num_frames=2),
    vision("vivit", "VivitModel", VIDEO, num_frames=2, tubelet_size=(2, 8, 8)),
    vision("hgnet_v2", "HGNetV2ForImageClassification", **STAGES),
]
