"""The full sweep from the command line: `python -m tests.parity`.

Owns the arguments and the exit status: 0 when every case passes and no exception is stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .drivers import DRIVERS
from .samples import DTYPES


def main() -> int:
    args = _arguments()
    if args.worker:
        from .worker import work

        work(args.driver, args.worker)
        return 0
    from .pool import run_jobs
    from .summary import stale_exceptions, summarise
    from .sweep import jobs

    part, _, of = args.shard.partition("/")
    shard = jobs(args.dtypes.split(","), int(part), int(of))
    todo = [job for job in shard if not args.op or job[0] in args.op]
    rows = run_jobs(todo, driver=args.driver, processes=args.jobs, timeout=args.timeout)
    # torch.compile's driver takes too few cases to say that an exception is not needed, and raw graphs refuse them.
    stale = stale_exceptions(rows) if args.driver == "backend" else []
    print(summarise(rows, stale, driver=args.driver))
    if args.out:
        found = {"driver": args.driver, "stale_exceptions": stale, "rows": rows}
        args.out.write_text(json.dumps(found, indent=0))
    return 0 if not stale and all(row["passed"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="op_db against eager, in full")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="operators whose hash is I modulo N")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of fp32, bf16, int64, by commas")
    parser.add_argument("--driver", default="backend", choices=DRIVERS)
    parser.add_argument("--op", action="append", help="this operator only (may be repeated)")
    parser.add_argument("--out", type=Path, help="write every case as JSON")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds of computing for one operator in one dtype"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
