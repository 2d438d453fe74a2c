"""Dense vision: boxes, masks, key points, depth, characters; heads on an image encoder or a backbone."""

from collections.abc import Mapping
from typing import Any

from .architecture import architecture
from .case import Case
from .fields import Field, image, uniform

BATCH = 2


def dense(name: str, model_class: str, *turns: Mapping[str, Field], **settings: Any) -> Case:
    return architecture(name, "dense vision", model_class, *(turns or (PIXELS,)), **settings)


PIXELS: Mapping[str, Field] = {"pixel_values": image(BATCH)}
LARGE = {"pixel_values": image(BATCH, 64)}
LAST_STAGE = {"model_type": "resnet", "out_features": ["stage4"]}
LAST_THREE = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
FOUR_STAGES = {"model_type": "resnet", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
PYRAMID = {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
}
TRANSFORMER_HEAD = {
    "num_queries": 8,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32, 48, 64],
    "decoder_in_channels": [32, 32, 32],
    "backbone_config": {"model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]},
}
POSE = {
    "model_type": "vitpose_backbone",
    "image_size": (32, 32),
    "patch_size": (8, 8),
    "out_indices": [2],
    "part_features": 8,
    "num_experts": 1,
}
SEGMENT = {
    "vision_config": {
        "output_channels": 16,
        "window_size": 2,
        "initializer_range": 0.3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
    },
    "prompt_encoder_config": {"hidden_size": 16},
    "mask_decoder_config": {"hidden_size": 16, "iou_head_hidden_dim": 16},
}

CASES: list[Case] = [
    dense("segformer", "SegformerForSemanticSegmentation"),
    dense("yolos", "YolosForObjectDetection"),
    dense("dpt", "DPTForDepthEstimation", **PYRAMID),
    dense("glpn", "GLPNForDepthEstimation"),
    dense(
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        patch_size=1,
        depths=(1, 1),
        num_heads=(2, 2),
        embed_dim=16,
    ),
    dense(
        "superpoint",
        "SuperPointForKeypointDetection",
        {"pixel_values": image(1, 32)},
        encoder_hidden_sizes=(16, 16, 32, 32),
    ),
    dense(
        "upernet",
        "UperNetForSemanticSegmentation",
        backbone_config=FOUR_STAGES,
        auxiliary_in_channels=48,
        auxiliary_channels=16,
    ),
    dense("detr", "DetrForObjectDetection", backbone_config=LAST_STAGE, num_queries=8),
    dense("conditional_detr", "ConditionalDetrForObjectDetection", backbone_config=LAST_STAGE, num_queries=8),
    dense("deformable_detr", "DeformableDetrForObjectDetection", backbone_config=LAST_THREE, num_queries=8),
    dense("rt_detr", "RTDetrForObjectDetection", LARGE, **TRANSFORMER_HEAD),
    dense("maskformer", "MaskFormerForInstanceSegmentation", fpn_feature_size=32, mask_feature_size=32),
    dense(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        feature_size=32,
        mask_feature_size=32,
        num_queries=8,
    ),
    dense("sam", "SamModel", {"pixel_values": image(BATCH), "input_points": uniform(BATCH, 1, 2, 2)}, **SEGMENT),
    dense("mgp-str", "MgpstrForSceneTextRecognition", num_bpe_labels=64, num_wordpiece_labels=64),
    dense("vitpose", "VitPoseForPoseEstimation", PIXELS, backbone_config=POSE),
]
