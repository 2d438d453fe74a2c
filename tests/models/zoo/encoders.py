"""Text encoders: padded batches, bidirectional attention in all its forms."""

from collections.abc import Mapping
from typing import Any

import torch

from .architecture import architecture
from .case import Case
from .fields import Field, right_padding, tokens, uniform, uniform_boxes

BATCH, LENGTH = 2, 12


def padded(length: int) -> dict[str, Field]:
    return {"input_ids": tokens(BATCH, length), "attention_mask": right_padding(BATCH, length)}


def encoder(
    name: str,
    model_class: str,
    length: int = LENGTH,
    more: Mapping[str, Field] | None = None,
    **settings: Any,
) -> Case:
    return architecture(name, "encoder", model_class, padded(length) | dict(more or {}), **settings)


LATENTS: dict[str, Any] = {
    "num_latents": 8,
    "d_latents": 32,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
}
LOCAL_AND_HASHED: dict[str, Any] = {
    "attn_layers": ("local", "lsh"),
    "attention_head_size": 8,
    "feed_forward_size": 48,
    "axial_pos_shape": (4, 4),
    "axial_pos_embds_dim": (16, 16),
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
    "num_buckets": 2,
}
BOXES = {"bbox": uniform_boxes(BATCH, LENGTH)}

CASES: list[Case] = [
    encoder("bert", "BertModel"),
    architecture("bert-lengths", "encoder", "BertModel", *(padded(length) for length in (12, 7, 15)), calls=12),
    encoder("bert-classifier", "BertForSequenceClassification", dtype=torch.bfloat16),
    encoder("roberta", "RobertaForMaskedLM"),
    encoder("roberta-prelayernorm", "RobertaPreLayerNormModel"),
    encoder("distilbert", "DistilBertForMaskedLM"),
    encoder("albert", "AlbertModel"),
    encoder("electra", "ElectraForPreTraining"),
    encoder("mobilebert", "MobileBertModel"),
    encoder("mpnet", "MPNetModel"),
    encoder("deberta", "DebertaModel"),
    encoder("deberta-v2", "DebertaV2Model"),
    encoder("xlm-roberta", "XLMRobertaForTokenClassification"),
    encoder("camembert", "CamembertForQuestionAnswering"),
    encoder("squeezebert", "SqueezeBertModel"),
    encoder("convbert", "ConvBertModel"),
    encoder("fnet", "FNetModel"),
    encoder("funnel", "FunnelModel", block_sizes=(1, 1), d_head=8, d_inner=48),
    encoder("longformer", "LongformerModel"),
    encoder("big_bird", "BigBirdModel"),
    encoder("nystromformer", "NystromformerModel"),
    encoder("yoso", "YosoModel"),
    encoder("mra", "MraModel"),
    encoder("roformer", "RoFormerModel"),
    encoder("rembert", "RemBertModel"),
    encoder("ernie", "ErnieModel"),
    encoder("esm", "EsmModel", pad_token_id=1),
    encoder("ibert", "IBertModel"),
    encoder("layoutlm", "LayoutLMModel", more=BOXES),
    encoder("lilt", "LiltModel", more=BOXES, hidden_size=48),
    encoder("bros", "BrosModel", more={"bbox": uniform(BATCH, LENGTH, 4)}, hidden_size=64),
    encoder("canine", "CanineModel", num_hash_buckets=64, local_transformer_stride=4),
    encoder("data2vec-text", "Data2VecTextModel"),
    encoder("megatron-bert", "MegatronBertModel"),
    encoder("splinter", "SplinterModel"),
    encoder("xlm", "XLMModel", emb_dim=32),
    encoder("flaubert", "FlaubertModel", emb_dim=32),
    encoder("xlnet", "XLNetModel"),
    encoder("tapas", "TapasModel"),
    encoder("luke", "LukeModel", entity_vocab_size=64, entity_emb_size=16),
    encoder("modernbert", "ModernBertModel"),
    encoder("eurobert", "EuroBertModel"),
    encoder("nomic_bert", "NomicBertModel"),
    encoder("bert-generation", "BertGenerationEncoder"),
    encoder("reformer", "ReformerModel", length=16, **LOCAL_AND_HASHED),
    encoder("markuplm", "MarkupLMModel", max_depth=4),
    encoder("visual_bert", "VisualBertModel"),
    encoder("perceiver", "PerceiverForMaskedLM", length=64, **LATENTS),
]
