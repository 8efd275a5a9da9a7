# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the live view in the documentation, from the reports of its tests.

    python scripts/screenshots.py [FOLDER]

Writes the same bytes each time, so ``git diff`` shows what a change does to the screen.
"""

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from probes.host.hypervisors import HypervisorType  # noqa: E402 - of this checkout
from probes.host.vcpu_threads import ThreadsReading, VcpuThread  # noqa: E402
from probes.render.live.app import LiveApp  # noqa: E402
from probes.render.live.frame_source import Feed  # noqa: E402
from tests.support.live_reports import busy_node, scene  # noqa: E402

FOLDER = ROOT / "docs/images"
SIZE = (100, 26)
PICTURES = {
    "live.svg": (),
    "live-vm.svg": ("down", "enter"),
    "live-vcpus.svg": ("slash", *"alpha", "enter", "enter"),
    "live-help.svg": ("question_mark",),
}
"""The keys that lead to each picture."""
_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def _threads(at_s: float) -> tuple[VcpuThread, ...]:
    """One thread that is halted most of the time, and one that is busy in guest code."""
    idle = VcpuThread(
        tid=4718,
        comm="CPU 0/KVM",
        emulates=False,
        on_cpu=False,
        run_call_of=HypervisorType.KVM,
        cpu_s=at_s * 0.04,
        guest_s=at_s * 0.03,
    )
    busy = replace(
        idle,
        tid=4719,
        comm="CPU 1/KVM",
        on_cpu=True,
        run_call_of=None,
        cpu_s=at_s * 0.97,
        guest_s=at_s * 0.94,
    )
    return idle, busy


async def picture(keys: tuple[str, ...]) -> str:
    """Return the screen after these keys as SVG, which loads nothing from elsewhere."""
    data = scene(*busy_node())
    vmm = next(each.vmm for each in data.report.processes if each.vmm.tgid == 4711)
    before, now = (
        ThreadsReading(vmm=vmm, at_s=at_s, threads=_threads(at_s), complete=True)
        for at_s in (100.0, 101.0)
    )
    data = replace(data, threads=now, threads_before=before)
    feed = Feed(next_data=lambda: data, stop=lambda: None)
    app = LiveApp(data, feed, interval_s=1.0)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        await pilot.press(*keys)
        await pilot.pause()
        drawn = app.export_screenshot(title="hvprobe live")
    lines = _FONT.sub("", drawn).replace("Fira Code, ", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main() -> None:
    """Write every picture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, keys in PICTURES.items():
        (folder / name).write_text(asyncio.run(picture(keys)), encoding="utf-8")


if __name__ == "__main__":
    main()
