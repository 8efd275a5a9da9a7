# SPDX-License-Identifier: Apache-2.0
"""The agent as users run it: a process that answers over HTTP and ends on a signal."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernel_agent import ROOT, Agent, program_exists, program_ids
from tests.support.kernel_world import DEADLINE_S, KvmLoad, Qemu, of_this_run, wait_for
from tests.support.required import require

END_WITHIN_S = DEADLINE_S / 15
"""2 s. Guests that are emulated in software take longer."""
GONE_WITHIN_S = DEADLINE_S / 15
"""Time for two scrapes that share no refresh, as scrapes within 1 s do. Emulation takes longer."""
ALPHA_NAME, BETA_NAME = of_this_run("alpha"), of_this_run("beta")
ALPHA = ("namespace", "default"), ("name", ALPHA_NAME)
BETA = ("namespace", "lab"), ("name", BETA_NAME)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for all tests that only read from it."""
    with Agent("--standalone", "--node", "test-node") as started:
        yield started


@pytest.fixture
def mortal_agent() -> Iterator[Agent]:
    """An agent for one test, which may end it."""
    with Agent("--standalone", "--node", "test-node") as started:
        yield started


def labels(*pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((("node", "test-node"), *pairs)))


def seen(agent: Agent, metric: str, *vms: tuple[tuple[str, str], ...]) -> dict[object, float]:
    """The metric's samples of the given VMs. The node may run other VMs."""
    return {
        found: value
        for found, value in agent.samples(metric).items()
        if any(set(vm) <= set(found) for vm in vms)
    }


@pytest.mark.every_kernel
def test_distinguishes_kvm_and_tcg_guests(agent: Agent) -> None:
    """A KVM and a TCG guest are verified as such, and a guest that ended loses its series."""
    info = "kubevirt_vmi_hypervisor_info"
    alpha_kvm = labels(*ALPHA, ("hypervisor_type", "kvm"))
    beta_tcg = labels(*BETA, ("hypervisor_type", "tcg"))
    with Qemu(f"default_{ALPHA_NAME}") as alpha, Qemu(f"lab_{BETA_NAME}", accel=("tcg",)) as beta:
        verified = {labels(*ALPHA): 1.0, labels(*BETA): 1.0}
        wait_for(
            lambda: seen(agent, "kubevirt_vmi_hypervisor_verified", ALPHA, BETA) == verified,
            "both guests are verified",
        )
        assert seen(agent, info, ALPHA, BETA) == {alpha_kvm: 1.0, beta_tcg: 1.0}
        assert seen(agent, "kubevirt_vmi_hypervisor_fallback", ALPHA, BETA) == {
            labels(*ALPHA): 0.0,
            labels(*BETA): 1.0,
        }
        alpha.kill()
        wait_for(
            lambda: seen(agent, info, ALPHA, BETA) == {beta_tcg: 1.0},
            "alpha's series are gone",
            GONE_WITHIN_S,
        )
        beta.kill()
        wait_for(
            lambda: seen(agent, info, ALPHA, BETA) == {}, "beta's series are gone", GONE_WITHIN_S
        )


@pytest.mark.every_kernel
def test_counts_every_userspace_exit(agent: Agent, kvmload: Path, tmp_path: Path) -> None:
    """A VM that exits to user space 100003 times is reported with exactly that count."""
    program = tmp_path / "qemu-kvm"
    shutil.copy(kvmload, program)
    counter = "kubevirt_vmi_vcpu_userspace_exits_total"
    name = of_this_run("counted")
    vm = labels(("namespace", "default"), ("name", name))
    with KvmLoad(program, "-name", f"guest=default_{name}", "--userspace-exits", "100003") as load:
        load.finish_counted_part()
        assert load.totals["userspace_exits"] == 100003
        made = 100003 + load.totals["eintr"]
        wait_for(lambda: agent.samples(counter).get(vm, 0) >= made, "all exits are counted")
        assert agent.samples(counter)[vm] == made


@pytest.mark.host_only
def test_metrics_pass_promtool(agent: Agent) -> None:
    """Prometheus's own linter accepts the names, types and help texts."""
    require("prometheus", None if shutil.which("promtool") else "there is no promtool")
    with Qemu(f"default_{ALPHA_NAME}"), Qemu(f"lab_{BETA_NAME}", accel=("tcg",)):
        wait_for(
            lambda: len(seen(agent, "kubevirt_vmi_hypervisor_verified", ALPHA, BETA)) == 2,
            "both are shown",
        )
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=agent.get("/metrics"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.host_only
def test_health_and_readiness(agent: Agent) -> None:
    """The agent is alive and ready when it serves, and reports each hook as attached or not."""
    assert agent.get("/healthz") == "alive\n"
    assert agent.get("/readyz") == "ready\n"
    hooks = agent.samples("hvprobe_hook_attached")
    assert hooks
    for hook, attached in hooks.items():
        assert attached == (dict(hook)["backend"] != "none")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_and_leaves_nothing(
    mortal_agent: Agent, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end the agent within 2 s, with code 0 and no BPF program left."""
    mortal_agent.get("/metrics")
    programs = program_ids(mortal_agent.tgid)
    assert programs
    assert all(program_exists(number) for number in programs)
    assert mortal_agent.end(number, END_WITHIN_S) == 0
    wait_for(
        lambda: not any(program_exists(number) for number in programs), "all programs are gone"
    )


@pytest.mark.host_only
def test_a_killed_agent_leaves_nothing(mortal_agent: Agent) -> None:
    """After SIGKILL the kernel removes the agent's programs."""
    programs = program_ids(mortal_agent.tgid)
    assert programs
    mortal_agent.kill()
    wait_for(
        lambda: not any(program_exists(number) for number in programs), "all programs are gone"
    )


@pytest.mark.host_only
def test_snapshot_agrees_with_metrics(agent: Agent) -> None:
    """``hvprobe snapshot`` beside a running agent reports the same types of the same guests."""
    with Qemu(f"default_{ALPHA_NAME}"), Qemu(f"lab_{BETA_NAME}", accel=("tcg",)):
        wait_for(
            lambda: (
                len(seen(agent, "kubevirt_vmi_hypervisor_verified", ALPHA, BETA)) == 2
                and 0.0 not in seen(agent, "kubevirt_vmi_hypervisor_verified", ALPHA, BETA).values()
            ),
            "both are verified",
        )
        taken = json.loads(hvprobe("snapshot", "--standalone", "--node", "test-node"))
        shown = seen(agent, "kubevirt_vmi_hypervisor_info", ALPHA, BETA)
    assert taken["schema"] == "hvprobe/v1"
    assert {
        labels(
            ("namespace", vmi["namespace"]),
            ("name", vmi["name"]),
            ("hypervisor_type", vmi["hypervisor_type"]),
        )
        for vmi in taken["vmis"]
        if vmi["name"] in (ALPHA_NAME, BETA_NAME)
    } == set(shown)


def test_doctor_says_what_this_node_can_prove() -> None:
    """With a hook of KVM_RUN the doctor exits with 0 and reports verified verdicts."""
    lines = hvprobe("doctor", "--standalone").splitlines()
    assert lines[-1] == "verdicts can be verified on this node"
    assert any(line.startswith("ok") and "KVM activity" in line for line in lines)


def hvprobe(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "probes", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
