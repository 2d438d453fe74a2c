"""The model sweep: every case of the zoo, eager and compiled, and the table "must my model be adapted?".

python tests/models/sweep.py --backend graphmode --out docs/sweep.md
python tests/models/sweep.py --backend eager --only 'llama*' --only net --shard 1/4 --out part1.md
python tests/models/sweep.py --merge part1.json part2.json --out docs/sweep.md
"""

import argparse
import fnmatch
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRAPHMODE_POISON", "1")  # garbage in arena and outputs before each replay

from proof.row import Row, Verdict
from proof.table import DEVICE, read, write
from proof.worker import answer, run_isolated


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.merge and not options.out:
        parser.error("--merge needs --out")
    if options.worker:
        answer(options.names, _trial_by_name(options.backend))
        return 0
    if options.merge:
        return _merge(options.merge, options.out, options.backend)
    from zoo import CASES

    wanted = [case for case in CASES.values() if _matches(case.name, case.family, options.only)]
    index, shards = options.shard
    wanted = wanted[index - 1 :: shards]
    if options.list:
        print("\n".join(f"{case.family}/{case.name}" for case in wanted))
        return 0
    rows = []
    for row in run_isolated([(case.name, case.family) for case in wanted], options.backend, options.timeout):
        rows.append(row)
        print(_progress(len(rows), len(wanted), row), flush=True)
        if options.out:
            write(rows, options.out, options.backend)
    return _status(rows)


def _merge(parts: Sequence[Path], out: Path, backend: str) -> int:
    rows = read(parts)
    families = list(dict.fromkeys(row.family for row in rows))
    rows.sort(key=lambda row: families.index(row.family))
    write(rows, out, backend)
    return _status(rows)


def _status(rows: Sequence[Row]) -> int:
    """On the CPU eager has to run; on another device what eager can't do there says nothing of a backend."""
    excused = () if DEVICE == "cpu" else (Verdict.EAGER_FAILED,)
    said = [row.identical for row in rows if row.verdict not in excused]
    return 0 if said and all(said) else 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--backend", default="graphmode", choices=("eager", "graphmode"))
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="family, name or both")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="part I, from 1, of N")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one case")
    parser.add_argument("--out", type=Path, help="the Markdown page; the rows as JSON lie beside it")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="JSON", help="only write --out, from parts")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    return parser


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    part = int(index), int(shards)
    if not 1 <= part[0] <= part[1]:
        raise argparse.ArgumentTypeError(f"{text}: expected I/N with 1 <= I <= N")
    return part


def _matches(name: str, family: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatch(text, p) for p in patterns for text in (name, family, f"{family}/{name}")
    )


def _trial_by_name(backend: str) -> Callable[[str], Row]:
    from proof.backend import counters
    from proof.trial import trial
    from zoo import CASES

    return lambda name: trial(CASES[name], backend, counters(backend))


def _progress(done: int, total: int, row: Row) -> str:
    said = "" if row.verdict is Verdict.IDENTICAL else f"  {row.detail[:160]}"
    return f"[{done}/{total}] {row.seconds:5.1f} s  {row.family}/{row.name}: {row.verdict}{said}"


if __name__ == "__main__":
    sys.exit(main())
