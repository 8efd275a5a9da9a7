# SPDX-License-Identifier: Apache-2.0
"""Writes the screenshots of docs/screenshots, as ``make screenshots`` does.

The pages are those of the unit tests' reports, served by the real server and drawn by Chromium.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from probes.report.model import NodeReport
from probes.serve.endpoints import Endpoints
from probes.serve.refresh import RefreshCache
from tests.support.browser import Browser, missing_programs
from tests.support.rich_report import rich_report, well_report
from tests.support.serving import Serving
from tests.support.why_reports import cluster_node

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
MAX_BYTES = 150_000
"""The most bytes of a picture in the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture."""

    name: str
    report: Callable[[], NodeReport]
    path: str = "/"
    width: int = 1000
    height: int = 800
    dark: bool = False


SHOTS = (
    Shot(name="page", report=rich_report, height=1100),
    Shot(name="page-well", report=well_report, height=720),
    Shot(name="page-dark", report=rich_report, dark=True),
    Shot(name="page-phone", report=rich_report, width=360),
    Shot(name="page-vm", report=cluster_node, path="/vmi/default/beta"),
)


def main() -> int:
    """Write all pictures; 1 when a program is missing or a picture is too large."""
    parser = argparse.ArgumentParser(description="Write the screenshots of the pages.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().folder
    missing = missing_programs()
    if missing:
        print(f"screenshots: not installed: {', '.join(missing)}", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        for shot in SHOTS:
            path = folder / f"{shot.name}.png"
            take(browser, shot, path)
            size = path.stat().st_size
            print(f"screenshots: {path}, {size} bytes")
            if size > MAX_BYTES:
                print(f"screenshots: {path} is larger than {MAX_BYTES} bytes", file=sys.stderr)
                return 1
    return 0


def take(browser: Browser, shot: Shot, path: Path) -> None:
    """Write one picture."""
    browser.emulate(width=shot.width, height=shot.height, dark=shot.dark)
    with Serving(Endpoints(RefreshCache(busy(shot.report))).routes) as serving:
        browser.open(f"http://127.0.0.1:{serving.port}{shot.path}")
        browser.screenshot(path, complete=False)


def busy(report: Callable[[], NodeReport]) -> Callable[[], NodeReport]:
    """Let time pass from one refresh to the next and the counters of each VM grow by its place."""
    begun_s = time.monotonic()

    def refresh() -> NodeReport:
        passed_s = time.monotonic() - begun_s
        now = report()
        vmis = tuple(
            vmi._replace(
                counters={
                    name: total + int(passed_s * 700 * place)
                    for name, total in vmi.counters.items()
                }
            )
            for place, vmi in enumerate(now.vmis, 1)
        )
        return replace(now, vmis=vmis, taken_unix_s=now.taken_unix_s + passed_s)

    return refresh


if __name__ == "__main__":
    sys.exit(main())
