"""Measures what docs/operators.md says the image costs, and prints it as that table's rows.

    make image-cost

Builds the image, and runs it as the capabilities DaemonSet beside one KVM and one TCG guest.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy_render import rendered
from deploy_tools import from_trixie
from image_build import NATIVE, Image, build, mounted, store, tag
from image_container import Container, running
from image_memory import memory_of
from image_qemu import QemuAsUser

SCRAPES = 20
MIB = 2**20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def on_disk_mib(root: Path) -> int:
    """As du counts it."""
    done = subprocess.run(["du", "-sm", root], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def in_registry_mb() -> float:
    """Compressed layers, as they are pulled."""
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "image"
        store("push", "--quiet", tag(NATIVE), f"oci-archive:{archive}")
        return archive.stat().st_size / 1e6


def cpu_s(tgid: int) -> float:
    """Processor time of a process and of its children that ended."""
    fields = Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def resident_mib(tgid: int) -> dict[str, float]:
    """By VmRSS and its parts."""
    lines = (line.split() for line in Path(f"/proc/{tgid}/status").read_text().splitlines())
    found = {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}
    return {name: round(found[name], 1) for name in ("VmRSS", "RssAnon", "VmHWM")}


@contextlib.contextmanager
def agent_of(image: Image) -> Iterator[tuple[Container, float]]:
    """The agent beside two guests, and the seconds from the runtime's start to its first line."""
    profile = from_trixie("golang-github-containers-common") / "usr/share/containers/seccomp.json"
    seccomp: dict[str, Any] = json.loads(profile.read_text())
    manifest = rendered("capabilities").one("DaemonSet")
    with QemuAsUser("default_alpha", "kvm"), QemuAsUser("lab_beta", "tcg"):
        begun_s = time.monotonic()
        with running(image, manifest, seccomp) as agent:
            yield agent, time.monotonic() - begun_s


def main() -> None:
    build()
    with mounted() as image:
        print(f"image on disk: {on_disk_mib(image.root)} MiB")
        print(f"image in a registry: {in_registry_mb():.0f} MB")
        with agent_of(image) as (agent, start_s):
            tgid = agent.main_tgid()
            print(f"start to /metrics: {start_s:.2f} s, {cpu_s(tgid):.2f} s of processor time")
            before = cpu_s(tgid)
            for _ in range(SCRAPES):
                time.sleep(1)  # two scrapes within a second share one look
                agent.get("/metrics")
            print(f"a scrape: {(cpu_s(tgid) - before) / SCRAPES * 1000:.1f} ms of processor time")
            print(f"agent, MiB: {resident_mib(tgid)}")
            memory = {name: round(it / MIB, 1) for name, it in memory_of(tgid).items()}
            print(f"its cgroup, MiB: {memory}")


if __name__ == "__main__":
    main()
