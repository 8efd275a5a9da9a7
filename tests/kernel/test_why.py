# SPDX-License-Identifier: Apache-2.0
"""``hvprobe why`` about real guests: exit codes, words, and what is said of others."""

import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.judge.cause import Cause
from probes.render.why_text import WIDTH
from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_pods import NO_DEVICE, Pod, World
from tests.support.kernel_world import DEADLINE_S, Qemu, Started, of_this_run, wait_for

ALPHA, BETA = of_this_run("alpha"), of_this_run("beta")
pytestmark = pytest.mark.host_only

ALLOWED = ("--name", "vm", "--allow-emulation")


def why(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as users run it, without a cluster."""
    return subprocess.run(
        [sys.executable, "-m", "probes", "why", "--standalone", "--node", "test-node", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=4 * DEADLINE_S,
    )


def why_once(code: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command's answer, once a guest that has just been started is what the code says."""

    def asked() -> subprocess.CompletedProcess[str] | None:
        ran = why(*arguments)
        return ran if ran.returncode == code else None

    return wait_for(asked, f"why {' '.join(arguments)} exits with {code}")


@pytest.fixture(scope="module")
def accelerated() -> Iterator[Qemu]:
    """A guest on KVM."""
    with Qemu(f"default_{ALPHA}") as guest:
        yield guest


@pytest.fixture(scope="module")
def emulated() -> Iterator[Qemu]:
    """A guest that QEMU emulates."""
    with Qemu(f"lab_{BETA}", accel=("tcg",)) as guest:
        yield guest


def test_an_accelerated_guest(accelerated: Qemu) -> None:
    """The exit code is 0, the sentence comes first, and a page of text fits 80 columns."""
    ran = why_once(0, f"default/{ALPHA}")
    lines = ran.stdout.splitlines()
    assert lines[0].startswith(f"default/{ALPHA} runs on KVM: ")
    assert "Why it is emulated" not in lines
    assert f"pid        {accelerated.tgid}, program" in ran.stdout
    assert f"/proc/{accelerated.tgid}/task/*/fd" in ran.stdout
    assert max(len(line) for line in lines) <= WIDTH
    assert 20 <= len(lines) <= 60


def test_an_emulated_guest(emulated: Qemu) -> None:
    """The exit code is 3, by name and by process, and the JSON has cause and remedy."""
    ran = why_once(3, f"lab/{BETA}")
    assert ran.stdout.startswith(f"lab/{BETA} is emulated in software (tcg)")
    assert "\nWhy it is emulated\n  cause   " in ran.stdout
    written = json.loads(why_once(3, str(emulated.tgid), "--json").stdout)
    assert written["schema"] == "hvprobe-why/v1"
    assert (written["tgid"], written["vmi"]["name"]) == (emulated.tgid, BETA)
    assert written["attribution"]["source"] == "libvirt_domain_name"
    (process,) = written["processes"]
    assert process["asked_for"] == ["tcg"]
    assert process["remedy"] in {cause.remedy for cause in Cause if cause == process["cause"]}
    assert any(piece["side"] == "for" for piece in process["evidence"])


@pytest.mark.host_only
def test_the_cause_of_a_pod(tmp_path: Path) -> None:
    """A guest whose pod allows emulation is explained by that."""
    with Pod(World(dev=NO_DEVICE, options=ALLOWED), tmp_path) as pod:
        shown = " ".join(why_once(3, str(pod.vmm.tgid)).stdout.split())
    assert Cause.EMULATION_ALLOWED.phrase in shown
    assert Cause.EMULATION_ALLOWED.remedy in shown


def test_what_is_not_there(emulated: Qemu) -> None:
    """Another name exits with 1 and the nearest one; so does a process that is no VMM."""
    why_once(3, f"lab/{BETA}")
    ran = why(f"lab/{BETA}x", "--log-level", "error")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1
    assert f"lab/{BETA}" in ran.stderr.partition("nearest names")[2]
    with Started([sys.executable, "-c", "import sys; sys.stdin.read()"]) as other:
        ran = why(str(other.tgid), "--log-level", "error")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"hvprobe: process {other.tgid} is no VMM on node test-node")
    assert why("not-a-vm").returncode == 2


@pytest.mark.host_only
def test_two_processes_with_a_name(emulated: Qemu) -> None:
    """A second QEMU with the VM's name is explained beside the one that runs it."""
    with Qemu(f"lab_{BETA}", "-S", accel=("tcg",)) as second:
        wanted = {f"{guest.tgid}, program" for guest in (emulated, second)}

        def both() -> str | None:
            shown = why(f"lab/{BETA}").stdout
            return shown if all(each in shown for each in wanted) else None

        shown = wait_for(both, "both processes are explained")
    assert "Another process of this VM: " in shown


@pytest.mark.host_only
def test_the_page_of_an_agent(emulated: Qemu) -> None:
    """The agent shows the same words at ``/vmi/NAMESPACE/NAME``, and 404 for another name."""
    with Agent("--standalone", "--node", "test-node") as agent:
        answer = agent.get(f"/vmi/lab/{BETA}")
        assert f"lab/{BETA} is emulated in software (tcg)" in answer
        with pytest.raises(urllib.error.HTTPError) as caught:
            agent.get(f"/vmi/lab/{BETA}x")
        with caught.value as missing:
            assert missing.code == 404
            assert f"lab/{BETA}" in missing.read().decode().partition("nearest names")[2]
