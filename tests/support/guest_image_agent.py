# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest of vmtest: starts the image's agent on that kernel.

    python3 guest_image_agent.py RESULT PARANOID:CAPABILITIES...

The image's root is shared as /packages. For each argument the agent is started in it with only
these capabilities (names joined by commas) and with kernel.perf_event_paranoid set, beside a KVM
guest and a TCG guest of uid 107. What it reports is written to RESULT. The interpreter is the
guest's own, without other packages.
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
"""The limit of locked memory that a process has by default on older kernels."""


def prepare() -> None:
    """Mount what a container runtime mounts."""
    for kind, point in (("proc", "proc"), ("tmpfs", "tmp")):
        subprocess.run(["mount", "-t", kind, kind, str(ROOT / point)], check=True)
    for point in ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{point}", str(ROOT / point)], check=True)
    # The guest is discarded afterwards, so its device keeps this mode.
    Path("/dev/kvm").chmod(0o666)


def inside(capabilities: str, *command: str) -> list[str]:
    """The command line that runs a command in the image's root with these capabilities only."""
    wanted = ",".join(["-all", *(f"+{name}" for name in capabilities.split(","))])
    return [
        *("prlimit", f"--memlock={MEMLOCK_BYTES}", "--", "chroot", str(ROOT)),
        *("/usr/bin/setpriv", f"--bounding-set={wanted}", "--"),
        *("/usr/bin/env", "-i", "PATH=/opt/hvprobe/bin:/usr/sbin:/usr/bin", *command),
    ]


def seen_with(case: str) -> dict[str, object]:
    """Metrics and log of the agent, and the doctor's output and exit code, in one case."""
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

        def metrics_of_both() -> str:
            with urllib.request.urlopen(found[1], timeout=60) as answer:
                text: str = answer.read().decode()
            return text if text.count("\nkubevirt_vmi_hypervisor_info{") == 2 else ""

        def final() -> bool:
            """Whether both are verified, or cannot be because BPF is missing.

            The emulated guest is verified once it has computed between two refreshes.
            """
            verified = re.findall(
                r"^kubevirt_vmi_hypervisor_verified.* 1\.0$", metrics_of_both(), re.MULTILINE
            )
            return len(verified) == 2 or " inferred" in log[0]

        wait_for(metrics_of_both, "both guests are seen")
        wait_for(final, f"both guests are verified, with {case}: {log}")
        metrics = metrics_of_both()
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
