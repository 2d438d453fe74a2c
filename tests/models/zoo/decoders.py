"""Decoder-only language models: a padded prompt in one call, and decode steps with each kind of cache."""

from typing import Any

from .architecture import architecture
from .case import Case
from .decoding import WAYS, prompt


def decoder(name: str, model_class: str, ways: str, family: str = "decoder", **settings: Any) -> list[Case]:
    """One case for each of `ways`, which are the keys of `WAYS`."""
    cases = []
    for way in ways.split():
        fields, drive = WAYS[way]
        cases.append(architecture(f"{name}-{way}", family, model_class, fields, drive=drive, **settings))
    return cases


CASES: list[Case] = [
    *decoder("llama", "LlamaForCausalLM", "prompt dynamic static anew"),
    architecture("llama-lengths", "decoder", "LlamaForCausalLM", *map(prompt, (10, 6, 13)), calls=12),
    *decoder("gpt2", "GPT2LMHeadModel", "prompt dynamic static"),
    *decoder("gpt_neo", "GPTNeoForCausalLM", "dynamic", attention_types=[[["global", "local"], 1]]),
    *decoder("gpt_neox", "GPTNeoXForCausalLM", "dynamic static"),
    *decoder("gptj", "GPTJForCausalLM", "static", rotary_dim=4),
    *decoder("gpt_bigcode", "GPTBigCodeForCausalLM", "static"),
    *decoder("opt", "OPTForCausalLM", "prompt dynamic"),
    *decoder("bloom", "BloomForCausalLM", "dynamic static"),
    *decoder("falcon", "FalconForCausalLM", "dynamic static"),
    *decoder("mpt", "MptForCausalLM", "dynamic"),
    *decoder("codegen", "CodeGenForCausalLM", "static", rotary_dim=4),
    *decoder("ctrl", "CTRLLMHeadModel", "dynamic"),
    *decoder("openai-gpt", "OpenAIGPTLMHeadModel", "prompt"),
    *decoder("mistral", "MistralForCausalLM", "prompt dynamic static"),
    *decoder("ministral", "MinistralForCausalLM", "static"),
    *decoder("gemma", "GemmaForCausalLM", "static"),
    *decoder("gemma2", "Gemma2ForCausalLM", "dynamic static"),
    *decoder("gemma3_text", "Gemma3ForCausalLM", "dynamic static anew"),
    *decoder("vaultgemma", "VaultGemmaForCausalLM", "static"),
    *decoder("qwen2", "Qwen2ForCausalLM", "prompt dynamic static"),
    *decoder("qwen3", "Qwen3ForCausalLM", "dynamic static"),
    *decoder("phi", "PhiForCausalLM", "static"),
    *decoder("phi3", "Phi3ForCausalLM", "dynamic static"),
    *decoder("cohere", "CohereForCausalLM", "static"),
    *decoder("cohere2", "Cohere2ForCausalLM", "static"),
    *decoder("olmo", "OlmoForCausalLM", "static"),
    *decoder("olmo2", "Olmo2ForCausalLM", "static"),
    *decoder("olmo3", "Olmo3ForCausalLM", "dynamic"),
    *decoder("stablelm", "StableLmForCausalLM", "static"),
    *decoder("starcoder2", "Starcoder2ForCausalLM", "static"),
    *decoder("persimmon", "PersimmonForCausalLM", "static"),
    *decoder("granite", "GraniteForCausalLM", "dynamic"),
    *decoder("nemotron", "NemotronForCausalLM", "static", num_key_value_heads=2),
    *decoder("helium", "HeliumForCausalLM", "static"),
    *decoder("glm", "GlmForCausalLM", "static"),
    *decoder("glm4", "Glm4ForCausalLM", "dynamic"),
    *decoder("smollm3", "SmolLM3ForCausalLM", "dynamic static"),
    *decoder("xglm", "XGLMForCausalLM", "dynamic"),
    *decoder("biogpt", "BioGptForCausalLM", "dynamic"),
    *decoder("arcee", "ArceeForCausalLM", "static"),
    *decoder("apertus", "ApertusForCausalLM", "static"),
    *decoder("ernie4_5", "Ernie4_5ForCausalLM", "static"),
    *decoder("exaone4", "Exaone4ForCausalLM", "static"),
    *decoder("seed_oss", "SeedOssForCausalLM", "static"),
    *decoder("diffllama", "DiffLlamaForCausalLM", "dynamic"),
    *decoder("doge", "DogeForCausalLM", "dynamic"),
    *decoder("bitnet", "BitNetForCausalLM", "static"),
    *decoder("nanochat", "NanoChatForCausalLM", "static"),
    *decoder("minicpm3", "MiniCPM3ForCausalLM", "static"),
    *decoder("youtu", "YoutuForCausalLM", "dynamic"),
    *decoder("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", "static"),
    *decoder("modernbert-decoder", "ModernBertDecoderForCausalLM", "dynamic static"),
]
