"""What a small engine is asked, by name, and what it answers: lists of tokens and numbers that JSON carries exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import fill

if TYPE_CHECKING:
    import torch
    from vllm import LLM

# Lengths of prompts, of requests that come together. The first three make graphs of decode steps; the sizes 8 and 5
# then come as prompts, alone and as two; 40 is captured as a prompt, and comes as two.
WAVES = (
    [1, 1],
    [5, 40, 1, 17, 33],
    [90, 2, 64, 7, 7, 3, 11, 29],
    [8],
    [5],
    [3, 5],
    [40],
    [40],
    [40],
    [19, 21],
)


class NothingHappened(Exception):
    """What a feature is there for did not show in the answers, so that comparing them proves nothing."""


def prompts(lengths: list[int], chosen: random.Random) -> list[Any]:
    """Random tokens, of these lengths."""
    return [{"prompt_token_ids": [chosen.randrange(4, 512) for _ in range(n)]} for n in lengths]


def waves() -> list[list[Any]]:
    """The prompts of each wave, the same at each call."""
    chosen = random.Random(7)
    return [prompts(wave, chosen) for wave in WAVES]


def params(**changed: Any) -> Any:
    """Greedy sampling with the log-probability of each token, but for what is changed."""
    from vllm import SamplingParams

    usual = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 1, "detokenize": False}
    return SamplingParams(**{**usual, **changed})


def answers_of(outputs: list[Any]) -> list[Any]:
    """Tokens and their summed log-probability."""
    return [[list(o.token_ids), o.cumulative_logprob] for out in outputs for o in out.outputs]


def generate(engine: LLM, together: list[list[Any]] | None = None, how: Any = None, **more: Any) -> list[Any]:
    """The waves one by one, greedily unless `how` says otherwise."""
    answers = []
    for wave in together or waves():
        answers += answers_of(engine.generate(wave, how or params(), use_tqdm=False, **more))
    return answers


def embed(engine: LLM, _: Path) -> list[Any]:
    """The vectors, three times over the waves: a size is captured at its second time and replayed at the third."""
    waved = [w for _ in range(3) for w in waves()]
    return [o.outputs.embedding for wave in waved for o in engine.embed(wave, use_tqdm=False)]


def score(engine: LLM, _: Path) -> list[Any]:
    """A cross-encoder's scores of texts against a question, three times over."""
    chosen = random.Random(7)
    texts = ["".join(chosen.choice("abcdefgh ") for _ in range(n)) for n in WAVES[2]]
    return [o.outputs.score for _ in range(3) for o in engine.score("a question", texts, use_tqdm=False)]


def repetitive(engine: LLM, _: Path) -> list[Any]:
    """Prompts that repeat themselves, for speculation that looks tokens up."""
    return generate(engine, [[{"prompt_token_ids": p["prompt_token_ids"][:6] * 6} for p in wave] for wave in waves()])


def shared_prefix(engine: LLM, _: Path) -> list[Any]:
    """Prompts that begin alike."""
    first = waves()[2][0]["prompt_token_ids"]
    return generate(engine, [[{"prompt_token_ids": first + p["prompt_token_ids"]} for p in w] for w in waves()])


def long(engine: LLM, _: Path) -> list[Any]:
    """More tokens than few blocks hold."""
    return generate(engine, [waves()[2]] * 2, params(max_tokens=80))


def many(engine: LLM, _: Path) -> list[Any]:
    """60 requests at once, of different ends."""
    asked = prompts([1 + i % 30 for i in range(60)], random.Random(8))
    ends = [params(max_tokens=4 + 3 * (i % 9)) for i in range(60)]
    return answers_of(engine.generate(asked, ends, use_tqdm=False))


def sampled(engine: LLM, _: Path) -> list[Any]:
    """Seeded sampling, each of the usual ways in one step."""
    ways: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 20, "n": 2},
        {"temperature": 0.7, "min_p": 0.05},
        {"presence_penalty": 0.5, "repetition_penalty": 1.2},
    ]
    hows = [params(seed=11 + i, **ways[i % len(ways)]) for i in range(8)]
    return answers_of(engine.generate(waves()[2], hows, use_tqdm=False))


def log_probabilities(engine: LLM, _: Path) -> list[Any]:
    """Five candidates of each position, of prompt and answer."""
    answers: list[Any] = []
    for wave in waves():
        for out in engine.generate(wave, params(logprobs=5, prompt_logprobs=5), use_tqdm=False):
            for place in [*(out.prompt_logprobs or []), *(out.outputs[0].logprobs or [])]:
                answers.append(sorted((t, v.logprob) for t, v in place.items()) if place else None)
    return [[list(pair) for pair in a] if a else a for a in answers]


def structured(engine: LLM, _: Path) -> list[Any]:
    """A regular expression and a choice."""
    from vllm.sampling_params import StructuredOutputsParams

    answers = []
    for form in (StructuredOutputsParams(regex="[a-f]{12}"), StructuredOutputsParams(choice=["yes", "no"])):
        how = params(structured_outputs=form, detokenize=True, ignore_eos=False)
        for wave in waves():
            outs = engine.generate(wave, how, use_tqdm=False)
            answers += [[o.outputs[0].text, *a] for o, a in zip(outs, answers_of(outs), strict=True)]
    return answers


def beams(engine: LLM, _: Path) -> list[Any]:
    """Tokens and log-probabilities of the beams."""
    from vllm.sampling_params import BeamSearchParams

    how = BeamSearchParams(beam_width=3, max_tokens=12, ignore_eos=True)
    outs = [out for _ in range(3) for out in engine.beam_search(waves()[1], how)]  # its sizes grow, and come again
    return [[s.tokens, s.cum_logprob] for out in outs for s in out.sequences]


def lora(engine: LLM, folder: Path) -> list[Any]:
    """Without an adapter, and with one."""
    from vllm.lora.request import LoRARequest

    plain = generate(engine)
    changed = generate(engine, lora_request=LoRARequest("small", 1, str(_adapter(folder / "adapter"))))
    _must_differ(plain, changed, "the adapter changed no answer")
    return plain + changed


def _adapter(folder: Path) -> Path:
    import json

    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {}
    for i in range(4):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        for part, shape in (("lora_A", (8, 128)), ("lora_B", (128, 8))):
            tensors[f"{name}.{part}.weight"] = torch.empty(shape)
    for name, tensor in tensors.items():
        fill(name, tensor)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    return folder


def reloaded(engine: LLM, folder: Path) -> list[Any]:
    """Other weights through vLLM's own reload, twice: the second time they are those of the first."""
    before = generate(engine)
    answers = list(before)
    for seed in (1, 2, 1):
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": _checkpoint(folder, seed)})
        answers += generate(engine)
    _must_differ(before, answers[len(before) : 2 * len(before)], "the reload changed no answer")
    return answers


def _checkpoint(folder: Path, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        fill(name, tensor, seed)
        yield name, tensor


def written(engine: LLM, _: Path) -> list[Any]:
    """Norms' weights written where they are, and one put in place of another."""
    import torch

    def write(model: torch.nn.Module) -> None:
        for name, tensor in model.state_dict().items():
            if "norm" in name:
                fill(name, tensor, 1)

    def replace(model: torch.nn.Module) -> None:
        norm = model.get_submodule("model.layers.1.input_layernorm")
        norm.weight = torch.nn.Parameter(norm.weight.detach() * 1.5, requires_grad=False)

    answers = before = generate(engine)
    for change in (write, replace):
        engine.apply_model(change)
        after = generate(engine)
        _must_differ(before, after, f"{change.__name__} changed no answer")
        answers, before = answers + after, after
    return answers


def slept(engine: LLM, _: Path) -> list[Any]:
    """Before and after."""
    answers = generate(engine)
    for level in (1, 2):
        engine.sleep(level=level)
        engine.wake_up()
        answers += generate(engine)
    return answers


def cache_reset(engine: LLM, _: Path) -> list[Any]:
    """The prefix cache emptied between requests."""
    answers = generate(engine)
    engine.reset_prefix_cache()
    return answers + generate(engine)


def given_up(engine: LLM, _: Path) -> list[Any]:
    """Every second request is aborted at its eighth step; the answers of the others."""
    core = engine.llm_engine
    for i, prompt in enumerate(waves()[2] + waves()[1]):
        core.add_request(str(i), prompt, params())
    done: dict[str, list[Any]] = {}
    for step in range(200):
        if not core.has_unfinished_requests():
            break
        if step == 8:
            core.abort_request([str(i) for i in range(0, 13, 2)])
        done |= {out.request_id: answers_of([out]) for out in core.step() if out.finished}
    return [[name, done[name]] for name in sorted(done)]


def _must_differ(before: list[Any], after: list[Any], what: str) -> None:
    if before == after:
        raise NothingHappened(what)


ASK: dict[str, Callable[[LLM, Path], list[Any]]] = {
    "generate": lambda engine, _: generate(engine),
    **{
        f.__name__: f
        for f in (embed, score, repetitive, shared_prefix, long, many, sampled, log_probabilities, structured, beams)
    },
    **{f.__name__: f for f in (lora, reloaded, written, slept, cache_reset, given_up)},
}
