# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest of vmtest: the image's root, shared as /packages, on that kernel.

    python3 guest_image_agent.py RESULT PARANOID:CAPABILITIES...

For each set of capabilities (names joined by commas) the agent is started in the image's root
with these only, kernel.perf_event_paranoid set as given, beside a KVM and a TCG guest of uid 107.
What it says is written to RESULT. The interpreter is the guest's own, without other packages.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.support.image_qemu import QemuAsUser
from tests.support.kernel_world import Started, wait_for

ROOT = Path("/packages")
MEMLOCK_BYTES = 64 * 1024
"""What a kernel gives a process that nobody has raised it for."""


def prepare() -> None:
    """What the container runtime mounts."""
    for kind, point in (("proc", "proc"), ("tmpfs", "tmp")):
        subprocess.run(["mount", "-t", kind, kind, str(ROOT / point)], check=True)
    for point in ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{point}", str(ROOT / point)], check=True)
    # The guest is thrown away: its device need not be as it was.
    Path("/dev/kvm").chmod(0o666)


def inside(capabilities: str, *command: str) -> list[str]:
    """A command in the image's root, as root, with these capabilities only."""
    wanted = ",".join(["-all", *(f"+{name}" for name in capabilities.split(","))])
    return [
        *("prlimit", f"--memlock={MEMLOCK_BYTES}", "--", "chroot", str(ROOT)),
        *("/usr/bin/setpriv", f"--bounding-set={wanted}", "--"),
        *("/usr/bin/env", "-i", "PATH=/opt/hvprobe/bin:/usr/sbin:/usr/bin", *command),
    ]


def seen_with(case: str) -> dict[str, object]:
    """Metrics, log and the doctor's words."""
    paranoid, _, capabilities = case.partition(":")
    Path("/proc/sys/kernel/perf_event_paranoid").write_text(paranoid)
    command = ["hvprobe", "agent", "--standalone", "--node", "guest", "--listen", "127.0.0.1:0"]
    log: list[str] = []
    with Started(inside(capabilities, *command), stderr=subprocess.PIPE) as agent:
        assert agent.popen.stderr is not None
        for line in agent.popen.stderr:
            log.append(line)
            found = re.search(r"serving (\S+/metrics)", line)
            if found:
                break
        else:
            raise AssertionError(log)

        def settled() -> str:
            with urllib.request.urlopen(found[1], timeout=60) as answer:
                text: str = answer.read().decode()
            return text if text.count("\nkubevirt_vmi_hypervisor_info{") == 2 else ""

        def told() -> bool:
            """Once the emulated one has computed between two looks; never without BPF."""
            verified = re.findall(
                r"^kubevirt_vmi_hypervisor_verified.* 1\.0$", settled(), re.MULTILINE
            )
            return len(verified) == 2 or " inferred" in log[0]

        wait_for(settled, "both guests are seen")
        wait_for(told, f"both guests are verified, with {case}: {log}")
        metrics = settled()
    doctor = subprocess.run(
        inside(capabilities, "hvprobe", "doctor"), check=False, capture_output=True, text=True
    )
    return {"metrics": metrics, "log": log, "doctor": doctor.stdout, "exit": doctor.returncode}


def main() -> None:
    prepare()
    alpha = QemuAsUser("default_alpha", "kvm", own_device=False)
    with alpha, QemuAsUser("lab_beta", "tcg", own_device=False):
        found = {case: seen_with(case) for case in sys.argv[2:]}
    Path(sys.argv[1]).write_text(json.dumps({"kernel": os.uname().release, "seen": found}))


if __name__ == "__main__":
    main()
