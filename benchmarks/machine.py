"""What ran the benchmark: a record of the machine and the versions, as the head of each JSON file.

Reads only; numbers without this record are worth nothing later.
"""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def record() -> dict[str, Any]:
    """CPU model, cores this process may use, versions, load of the last minute, and the date."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "transformers", "graphmode")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(machine: dict[str, Any]) -> str:
    """The record in one line."""
    torch = machine["versions"]["torch"]
    return f"{machine['cpu']}, {machine['cores']} cores, torch {torch}, load {machine['load']}"


def cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(path: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes `head` (machine, settings) and `rows` as one JSON object, whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    unfinished.replace(path)
