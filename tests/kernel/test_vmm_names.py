# SPDX-License-Identifier: Apache-2.0
"""Real QEMU guests under other names, found by a scan and known by an inspection alike."""

import os
from pathlib import Path

import pytest

from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmProcess
from probes.host.reader import Host
from tests.support.kernel_disguises import DISGUISES, ENVIRONMENT, Disguise
from tests.support.kernel_world import Qemu, Started, wait_for

pytestmark = pytest.mark.host_only


def seen(host: Host, tgid: int) -> VmmProcess | None:
    """Return the inspection of a process that a scan found; None: the scan did not find it."""
    scan = host.scan([tgid], every_fd=False)
    if tgid not in scan.found:
        return None
    return host.inspect(list(scan.found.values())).processes.get(scan.found[tgid])


@pytest.mark.parametrize("command", DISGUISES)
def test_emulated_guests(tmp_path: Path, command: Disguise) -> None:
    """A guest of any name, however it was started, is found, also by an agent that starts later."""
    environment = {**os.environ, **ENVIRONMENT}
    with Started([*command(tmp_path), "-S"], environment=environment, stderr=None) as guest:

        def emulating() -> VmmProcess | None:
            found = seen(Host(), guest.tgid)
            threads = found.threads if found is not None else ()
            named = any("TCG" in thread.comm for thread in threads)
            return found if named or len(threads) > 2 else None

        found = wait_for(emulating, "the guest is found")
        assert found is not None
        assert found.named_like_qemu
        assert found.command_line.accelerators == ("tcg",)
        assert found.fds.complete
        assert not found.fds.any
        assert found.threads_complete
        assert found.parent_tgid == os.getpid()


def test_guest_with_workers_of_the_kernel() -> None:
    """A process's descriptors are complete although KVM's worker threads have no table."""
    with Qemu("lab_kvm", "-smp", "2") as guest:

        def running() -> VmmProcess | None:
            found = seen(Host(), guest.tgid)
            return (
                found
                if found is not None and len(found.fds.of(HypervisorType.KVM).vcpus) == 2
                else None
            )

        found = wait_for(running, "both vCPUs are there")
        assert found is not None
        assert found.fds.complete
        assert found.threads_complete
        assert found.unread is None


@pytest.mark.parametrize(
    "words", [["-c", "read line # qemu-system-x86_64 -accel kvm"], ["-s", "-"]]
)
def test_shells_that_speak_of_it(words: list[str]) -> None:
    """A shell is no VMM because its script names one."""
    with Started(["sh", *words]) as shell:
        host = Host()

        def judged() -> bool:
            scan = host.scan([shell.tgid], every_fd=True)
            assert not scan.found
            comm = Path(f"/proc/{shell.tgid}/comm").read_text()
            return shell.tgid in scan.others and comm != "python\n"

        assert wait_for(judged, "the shell is read")
