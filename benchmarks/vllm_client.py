"""vLLM's own `bench serve` in a worker process, and the data that it is given in ShareGPT's form.

Knows one run at a time; which server has its turn is `vllm_serve.py`'s.
"""

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

CONVERSATIONS = 1000
PROMPT = (60, 1.2, 768)  # median, sigma of its logarithm, and limit, in tokens
ANSWER = (70, 0.9, 256)


class Client:
    """Runs `vllm bench serve`; vLLM is imported once for all runs."""

    def __init__(self) -> None:
        here = Path(__file__).parent  # it has a vllm.py of its own, which would be imported in the package's place
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here.resolve()]
        from vllm.benchmarks.serve import add_cli_args, main
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.parser, self.main = FlexibleArgumentParser(), main
        add_cli_args(self.parser)

    def run(self, *arguments: str) -> dict[str, Any]:
        """The numbers of one run.

        Raises:
            RuntimeError: a request failed.
        """
        found = self.main(self.parser.parse_args(list(arguments)))
        if found["failed"]:
            errors = [e for e in found.get("errors", []) if e]
            raise RuntimeError(f"{found['failed']} requests failed, the first with: {errors[:1]}")
        return {name: value for name, value in found.items() if isinstance(value, (int, float, str))}


def write_conversations(file: Path, tokenizer: Path) -> None:
    """A file as ShareGPT's: one question and one answer each, of log-normal lengths, made of the vocabulary's words."""
    words = [w for w in json.loads(tokenizer.read_text())["model"]["vocab"] if re.fullmatch("Ġ[a-z]+", w)]
    chance = random.Random(17)

    def text(median: int, sigma: float, limit: int) -> str:
        tokens = min(limit, max(4, round(chance.lognormvariate(math.log(median), sigma))))
        return " ".join(w[1:] for w in chance.choices(words, k=tokens))

    conversations = [
        {"id": str(i), "conversations": [{"from": who, "value": text(*shape)} for who, shape in _TURNS]}
        for i in range(CONVERSATIONS)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(conversations))


_TURNS = (("human", PROMPT), ("gpt", ANSWER))
