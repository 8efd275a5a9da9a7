# SPDX-License-Identifier: Apache-2.0
"""``hvprobe live`` as text: beside an agent, as JSON, without root, and its time to start."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probes.report.json_schema import json_schema
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import DEADLINE_S, KvmLoad, Qemu, Started, wait_for
from tests.support.live_terminal import HVPROBE, Terminal, environment

SCHEMA = json_schema()
FIRST_FRAME_S = 2.0
RUNS = "kvm_runs_total"
USERSPACE_EXITS = "vcpu_userspace_exits_total"
AGENTS_COUNTER = "kubevirt_vmi_vcpu_userspace_exits_total"
COUNTED = (("name", "counted"), ("namespace", "live"), ("node", "n"))


@pytest.fixture
def counted(kvmload: Path, tmp_path: Path) -> Iterator[KvmLoad]:
    """A user of KVM that hvprobe takes for the VM live/counted."""
    program = tmp_path / "qemu-kvm"
    program.write_bytes(kvmload.read_bytes())
    program.chmod(0o755)
    with KvmLoad(program, "-name", "guest=live_counted", "--step") as load:
        yield load.finish_counted_part()


class Frames(Started):
    """The frames of ``hvprobe live --json``."""

    def __init__(self, *arguments: str) -> None:
        command = ["live", "--json", "--standalone", "--node", "n", "--interval", "0.2"]
        super().__init__([*HVPROBE, *command, *arguments], environment=environment())

    def next(self) -> dict[str, Any]:
        line = self.line()
        assert line, f"live ended with {self.popen.wait()}"
        frame: dict[str, Any] = json.loads(line)
        return frame

    def process(self, tgid: int) -> dict[str, Any]:
        """The process in the next frame; empty when it is not there."""
        processes = self.next()["processes"]
        return next((process for process in processes if process["tgid"] == tgid), {})


def hvprobe(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HVPROBE, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def total(agent: Agent) -> float:
    return agent.samples(AGENTS_COUNTER).get(COUNTED, 0)


def verified(agent: Agent) -> set[str]:
    """The names of this test's verified VMs."""
    samples = agent.samples("kubevirt_vmi_hypervisor_verified")
    found = {dict(labels)["name"] for labels, value in samples.items() if value}
    return found & {"alpha", "beta", "counted"}


def test_does_not_change_the_agents_counts(kvmload: Path, tmp_path: Path) -> None:
    """An agent's counts stay exact while a live view with exit reasons starts, runs and ends."""
    program = tmp_path / "qemu-kvm"
    program.write_bytes(kvmload.read_bytes())
    program.chmod(0o755)
    with (
        Agent("--standalone", "--node", "n") as agent,
        KvmLoad(program, "-name", "guest=live_counted", "--step") as load,
    ):
        load.finish_counted_part()
        load.step(10007)
        with Frames("--reasons") as frames:
            wait_for(lambda: frames.process(load.tgid), "it is shown")
            load.step(20011)
            wait_for(
                lambda: frames.process(load.tgid).get(USERSPACE_EXITS) == 20011,
                "live counts from its own start",
            )
            assert total(agent) == 10007 + 20011
            frames.popen.terminate()
            assert frames.popen.wait(DEADLINE_S) == 0
        load.step(30011)
        wait_for(lambda: total(agent) == 10007 + 20011 + 30011, "the agent has counted all")
        assert total(agent) == 10007 + 20011 + 30011


def test_live_snapshot_and_metrics_agree(counted: KvmLoad) -> None:
    """All three show the same types, and the agent's counts bound those of live and snapshot."""
    with (
        Agent("--standalone", "--node", "n") as agent,
        Qemu("live_alpha"),
        Qemu("live_beta", accel=("tcg",)),
        Frames() as frames,
    ):
        counted.step(3)
        wait_for(lambda: verified(agent) == {"alpha", "beta", "counted"}, "all are verified")
        counted.step(5000)
        wait_for(lambda: total(agent) == 5003, "the agent has counted")
        before = total(agent)
        wait_for(lambda: frames.process(counted.tgid), "the running view has begun")
        counted.step(7001)
        live = json.loads(hvprobe("live", "--once", "--json", "--node", "n").stdout)
        snapshot = json.loads(hvprobe("snapshot", "--node", "n").stdout)
        running = wait_for(
            lambda: (frames.process(counted.tgid).get(USERSPACE_EXITS) or 0) >= 7001,
            "the running view has counted",
        )
        assert running
        after = total(agent)
        metrics = {
            (dict(labels)["namespace"], dict(labels)["name"]): dict(labels)["hypervisor_type"]
            for labels in agent.samples("kubevirt_vmi_hypervisor_info")
        }
    for report in (live, snapshot):
        types = {
            (vmi["namespace"], vmi["name"]): vmi["hypervisor_type"]
            for vmi in report["vmis"]
            if vmi["namespace"] == "live"
        }
        assert types == {name: kind for name, kind in metrics.items() if name[0] == "live"}
        (count,) = (vmi[USERSPACE_EXITS] for vmi in report["vmis"] if vmi["name"] == "counted")
        assert (count or 0) <= after - before
    assert (before, after) == (5003, 5003 + 7001)


def test_frames_keep_to_the_schema(counted: KvmLoad) -> None:
    """Frames with exit reasons and snapshots are valid under the published schema."""
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    with Qemu("live_alpha"), Qemu("live_beta", accel=("tcg",)):
        with Frames("--reasons") as frames:
            wait_for(lambda: len(frames.next()["vmis"]) >= 3, "the guests are shown")
            counted.step(503)
            for _ in range(3):
                frame = frames.next()
                validator.validate(frame)
                assert all("exit_reasons" in process for process in frame["processes"])
        snapshot = json.loads(hvprobe("snapshot").stdout)
    validator.validate(snapshot)
    assert snapshot["vmis"]


def test_piped_table(counted: KvmLoad) -> None:
    """A pipe receives an aligned table without shortened cells or escape sequences."""
    with Qemu("live_alpha"):
        shown = hvprobe("live", "--once", "--standalone", "--namespace", "live")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    lines = shown.stdout.splitlines()
    heading = next(line for line in lines if "COMMAND" in line)
    # The other lines are those about KVM's statistics, where this kernel has them.
    rows = [line for line in lines[lines.index(heading) + 1 :] if line.split()[0].isdigit()]
    assert {"live/alpha", "live/counted"} == {
        line[heading.index("VMI") : heading.index("TYPE")].strip() for line in rows
    }
    assert all(line[heading.index("TYPE") - 1] == " " for line in rows)


def test_filters(counted: KvmLoad) -> None:
    """--pid, --namespace and --type show exactly the processes and VMIs that match."""
    with Qemu("live_beta", accel=("tcg",)) as beta:
        for arguments, tgids in (
            (("--pid", str(counted.tgid)), {counted.tgid}),
            (("--pid", f"{counted.tgid},{beta.tgid}"), {counted.tgid, beta.tgid}),
            (("--namespace", "live"), {counted.tgid, beta.tgid}),
            (("--namespace", "live", "--type", "tcg"), {beta.tgid}),
            (("--namespace", "nowhere"), set()),
        ):
            frame = json.loads(hvprobe("live", "--once", "--json", *arguments).stdout)
            assert {process["tgid"] for process in frame["processes"]} == tgids
            assert {vmi["tgid"] for vmi in frame["vmis"]} == tgids


def test_first_frame(tmp_path: Path) -> None:
    """The first frame appears within 2 s, after a line on stderr that says what takes time.

    Only the fastest of several starts counts, because the machine may have other work.
    """
    took_s = []
    for _ in range(4):
        started_s = time.monotonic()
        with Started([*HVPROBE, "live"], environment=environment(), stderr=-1) as live:
            assert live.popen.stderr is not None
            assert live.popen.stderr.readline() == "hvprobe: attaching the probes ...\n"
            assert live.line().startswith("hvprobe ")
            took_s.append(time.monotonic() - started_s)
    assert min(took_s) < FIRST_FRAME_S


def test_reader_that_went_away(counted: KvmLoad) -> None:
    """``live | head -1`` ends without an error."""
    command = f"{' '.join(HVPROBE)} live --interval 0.1; echo $? >&3"
    reader, writer = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"({command}) 3>&{writer} | head -1"],
        env=environment(),
        capture_output=True,
        text=True,
        pass_fds=[writer],
        check=True,
        timeout=DEADLINE_S,
    )
    os.close(writer)
    with os.fdopen(reader) as status:
        assert status.read().strip() == "0"
    assert done.stdout.startswith("hvprobe ")
    assert done.stderr == "hvprobe: attaching the probes ...\n"


UNPRIVILEGED = ("--reuid=65534", "--regid=65534", "--clear-groups")
# Capabilities are given by number, because older versions of setpriv do not know all names.
NO_BPF = ("--bounding-set=-cap_39,-cap_38,-cap_21", "--inh-caps=-cap_39,-cap_38,-cap_21")
NO_PTRACE = ("--bounding-set=-cap_19", "--inh-caps=-cap_19")


@pytest.mark.parametrize(
    ("without", "names"),
    [
        (UNPRIVILEGED, ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")),
        (NO_BPF, ("CAP_BPF", "CAP_PERFMON")),
        (NO_PTRACE, ("CAP_SYS_PTRACE",)),
    ],
    ids=["unprivileged", "no BPF", "no ptrace"],
)
def test_without_privileges(without: Sequence[str], names: Sequence[str]) -> None:
    """Without its privileges live exits with 1 and one line that names them and the remedy."""
    shown = subprocess.run(
        ["setpriv", *without, *HVPROBE, "live"],
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert (shown.returncode, shown.stdout) == (1, "")
    (line,) = shown.stderr.splitlines()
    assert line.startswith("hvprobe: live ")
    assert [name for name in names if name not in line] == []
    assert "run it as root" in line


def test_doctor_for_a_person(tmp_path: Path) -> None:
    """On a terminal the doctor marks each check with colour, unless NO_COLOR is set."""
    for variables, mark, colours in (
        ({}, "✓", True),
        ({"NO_COLOR": "1"}, "✓", False),
        ({"LC_ALL": "C"}, "ok ", True),
    ):
        command = [*HVPROBE, "doctor", "--standalone"]
        with Terminal(tmp_path, command, columns=100, lines=50, variables=variables) as terminal:
            terminal.wait_for("ended with 0")
            frame = terminal.frame()
            assert any(line.startswith(f"{mark} ".rstrip()) for line in frame)
            assert f"{mark.strip()} verdicts can be verified on this node" in frame
            assert all(len(line) <= 100 for line in frame)
            assert bool(re.search(r"\x1b\[(1;)?3[1-7]m", terminal.coloured())) is colours


def test_doctor_as_json() -> None:
    """The JSON object has the same checks as the text, and the command's exit code."""
    shown = hvprobe("doctor", "--json", "--standalone")
    found = json.loads(shown.stdout)
    assert found["schema"] == "hvprobe-doctor/v1"
    assert (found["ability"], found["exit_code"], shown.returncode) == ("verified", 0, 0)
    plain = hvprobe("doctor", "--standalone").stdout.splitlines()
    assert [check["question"] for check in found["checks"]] == [
        line[6:].partition(":")[0] for line in plain[:-1]
    ]
