# SPDX-License-Identifier: Apache-2.0
"""The results of a run as one JSON file, and as lines for a reader.

Shape of the file: {"machine": {name: text}, "seconds": how long the run took, "rows": [...],
"guard": {name: ratio}}. A row has the fields of bench_rows.Row, and `passed` and the ratios.
"""

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bench.agent import ROOT
from bench.rows import Row

RESULTS = ROOT / "bench/results.json"
PASSED = {True: "ok", False: "MISSED", None: ""}
LIBRARIES = (
    "hvprobe",
    "kubernetes",
    "msgspec",
    "prometheus-client",
    "psutil",
    "tornado",
    "urllib3",
)


def row_json(row: Row) -> dict[str, Any]:
    """A row with what follows from it. Ratios are ours over theirs: below 1, ours is less."""
    beside = [
        {**dataclasses.asdict(peer), "ratio": ratio(row.value, peer.value)} for peer in row.beside
    ]
    return {
        **dataclasses.asdict(row),
        "passed": row.passed,
        "of_goal": ratio(row.value, row.goal),
        "beside": beside,
    }


def ratio(ours: float, theirs: float | None) -> float | None:
    """None: there is nothing to compare with."""
    return ours / theirs if theirs and theirs > 0 else None


def number(value: float) -> str:
    """A number with three significant digits; 0 and numbers from 100 have no decimals."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def lines(row: Row) -> Iterable[str]:
    """A row for a reader at a terminal."""
    goal = "" if row.goal is None else f"goal <= {number(row.goal)}"
    spread = ""
    if row.low is not None and row.high is not None:
        spread = f"[{number(row.low)} .. {number(row.high)}]"
    value = f"{number(row.value)} {row.unit}"
    yield f"{row.what:<66} {value:>20} {spread:<20} {goal:<12} {PASSED[row.passed]}"
    for peer in row.beside:
        if peer.value is None:
            yield f"    beside {peer.name}: none, {peer.why}"
        else:
            times = ratio(row.value, peer.value)
            share = "" if times is None else f", ours is {number(times)} of it"
            yield f"    beside {peer.name}: {number(peer.value)} {row.unit}{share}"


def results_json(
    rows: Iterable[Row], guard: Mapping[str, float], *, seconds: float
) -> dict[str, Any]:
    """The complete content of the results file."""
    return {
        "machine": machine(),
        "seconds": round(seconds),
        "rows": [row_json(row) for row in rows],
        "guard": dict(guard),
    }


def write(results: Mapping[str, Any], file: Path) -> None:
    """Numbers rounded to what they are worth, so that the file can be read and compared."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def machine() -> dict[str, str]:
    """Where the run was, and with what."""
    return {
        "processor": _processor(),
        "CPUs": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "KVM": _kvm(),
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "Python": platform.python_version(),
        "bcc": _package("python3-bpfcc"),
        "bpfcc-tools": _package("bpfcc-tools"),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _kvm() -> str:
    vendors = sorted(module.name for module in Path("/sys/module").glob("kvm_*"))
    return ", ".join(vendors) or "built in"


def _package(name: str) -> str:
    if shutil.which("dpkg-query") is None:
        return "unknown"
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True, check=False
    )
    return asked.stdout or "not installed"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
