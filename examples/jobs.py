"""The demo's two jobs as one peer does them, in a worker process: embed sentences, generate texts.

Both answer the same calls, so that demo.py treats them alike. What they compute is in embed.py, generate.py.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import peers
import torch
from embed import QUERIES, SENTENCES, embed, encode, load, nearest
from generate import PROMPT, Decoder
from torch import nn

PASSES = 8
PROMPTS = [PROMPT, "Write two sentences about a lighthouse keeper."]
TOKENS_PER_PROMPT = 64
CALLS_PER_ROUND = 16


class Timed:
    """A callable that notes the seconds of each of its calls."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run, self.seconds = run, []

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        result = self.run(*args)
        self.seconds.append(time.perf_counter() - start)
        return result


class Job:
    """What a peer is told to do: `first_calls`, then `round` until it answers nothing, then `results`."""

    peer: str
    model: nn.Module
    timed: Timed
    work: Iterator[None]

    def warm_up(self) -> None:
        raise NotImplementedError

    @torch.inference_mode()
    def first_calls(self) -> list[float]:
        """Seconds of each of the first three calls: compiling, capturing, replaying."""
        self.warm_up()
        return self.taken()

    @torch.inference_mode()
    def round(self) -> list[float]:
        """Seconds of each of the next calls: one call is one sentence, or one token."""
        for _ in islice(self.work, CALLS_PER_ROUND):
            pass
        return self.taken()

    def results(self) -> tuple[list[str], np.ndarray]:
        """The answers as a user reads them, and the numbers behind them, one row a call."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Bytes of weights that a call reads (of an embedding table only rows), graphmode's counters."""
        modules = [module for module in self.model.modules() if not isinstance(module, nn.Embedding)]
        weights = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters(recurse=False)}
        return {"weight_bytes": sum(weights.values()), "counters": peers.counters(self.peer)}

    def taken(self) -> list[float]:
        seconds, self.timed.seconds = self.timed.seconds, []
        return seconds


class Embedding(Job):
    """One call embeds one sentence."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        tokenizer, self.model = load()
        self.encodings = [encode(tokenizer, text) for text in SENTENCES + QUERIES]
        self.timed = Timed(partial(embed, peers.prepare(peer, self.model, ())))
        self.vectors: list[torch.Tensor] = []
        self.work = self.passes()

    def warm_up(self) -> None:
        for encoding in self.encodings[:3]:
            self.timed(encoding)

    def passes(self) -> Iterator[None]:
        for _ in range(PASSES):
            for encoding in self.encodings:
                self.vectors.append(self.timed(encoding))
                yield

    def results(self) -> tuple[list[str], np.ndarray]:
        vectors = torch.cat(self.vectors)
        sentences, queries = vectors[-len(self.encodings) :].split([len(SENTENCES), len(QUERIES)])
        answers = []
        for query, vector in zip(QUERIES, queries, strict=True):
            index, score = nearest(vector, sentences)
            answers.append(f"{query:<24} {SENTENCES[index]} ({score:.2f})")
        return answers, vectors.numpy()


class Generation(Job):
    """One call makes one token; keeps the tokens and the logits that chose them."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.decoder = Decoder()
        self.model = self.decoder.model
        self.timed = self.decoder.step = Timed(peers.prepare(peer, self.decoder.step, ()))
        self.tokens: list[list[int]] = []
        self.logits: list[torch.Tensor] = []
        self.work = self.texts()

    def warm_up(self) -> None:
        logits = self.decoder.prefill(self.decoder.prompt("Hello"))
        for _ in range(3):
            logits = self.decoder.step(logits.argmax(-1, keepdim=True))

    def texts(self) -> Iterator[None]:
        for prompt in PROMPTS:
            self.tokens.append([])
            for token, logits in self.decoder.tokens(prompt, TOKENS_PER_PROMPT):
                self.tokens[-1].append(token)
                self.logits.append(logits)
                yield

    def results(self) -> tuple[list[str], np.ndarray]:
        answers = [
            f"> {prompt}\n{self.decoder.tokenizer.decode(tokens)}"
            for prompt, tokens in zip(PROMPTS, self.tokens, strict=True)
        ]
        return answers, torch.cat(self.logits).float().numpy()
