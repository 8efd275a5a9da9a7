# SPDX-License-Identifier: Apache-2.0
"""The image, run by a real OCI runtime on this machine's kernel as each DaemonSet specifies.

Beside it run a KVM guest and a TCG guest of user 107, as virt-launcher starts them.
"""

import copy
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.deploy_render import rendered
from tests.support.image_build import Image
from tests.support.image_container import Container, possible_capabilities, running
from tests.support.image_memory import memory_of
from tests.support.image_qemu import QemuAsUser
from tests.support.kernel_agent import program_exists, program_ids
from tests.support.kernel_world import wait_for
from tests.support.required import missing_for_guests, require

pytestmark = pytest.mark.timeout(900)
Json = dict[str, Any]
VARIANTS = ("privileged", "capabilities")
ALPHA = {"namespace": "default", "name": "alpha", "node": "worker-1"}
BETA = {"namespace": "lab", "name": "beta", "node": "worker-1"}
KVM, TCG, UNKNOWN = ({"hypervisor_type": kind} for kind in ("kvm", "tcg", "unknown"))


@pytest.fixture(scope="module")
def guests() -> Iterator[None]:
    """The running guests default/alpha (KVM) and lab/beta (TCG), both of user 107."""
    require("image", missing_for_guests())
    with QemuAsUser("default_alpha", "kvm"), QemuAsUser("lab_beta", "tcg"):
        yield


def daemonset(overlay: str) -> Json:
    return rendered(overlay).one("DaemonSet")


def samples(agent: Container, metric: str) -> dict[frozenset[tuple[str, str]], float]:
    """A metric's values by labels, for the two guests only, because the node may run others."""
    ours = (set(ALPHA.items()), set(BETA.items()))
    return {
        frozenset(labels): value
        for labels, value in agent.samples(metric).items()
        if any(guest <= set(labels) for guest in ours)
    }


def labels(*parts: Json) -> frozenset[tuple[str, str]]:
    return frozenset(pair for part in parts for pair in part.items())


def both_verified(agent: Container) -> Callable[[], bool]:
    """A condition: alpha is shown as kvm and beta as tcg, both verified."""

    def seen() -> bool:
        types = samples(agent, "kubevirt_vmi_hypervisor_info")
        proven = samples(agent, "kubevirt_vmi_hypervisor_verified")
        return types == {labels(ALPHA, KVM): 1.0, labels(BETA, TCG): 1.0} and proven == {
            labels(ALPHA): 1.0,
            labels(BETA): 1.0,
        }

    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_proves_what_runs(image: Image, crio_seccomp: Json, guests: None, variant: str) -> None:
    """Each variant shows the types of alpha and beta, verified, and `hvprobe doctor` passes."""
    with running(image, daemonset(variant), crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        assert samples(agent, "kubevirt_vmi_hypervisor_fallback")[labels(BETA)] == 1.0
        doctor = agent.execute("hvprobe", "doctor")
        assert doctor.returncode == 0, doctor.stdout
        assert "permissions: complete" in doctor.stdout
        assert agent.get("/readyz") == "ready\n"


def test_serves_https(image: Image, crio_seccomp: Json, guests: None, tmp_path: Path) -> None:
    """The TLS variant serves the certificate that cert-manager would mount.

    It shows VMs only to clients whose certificate is of the same CA, and its health to all.
    """
    authority = Authority(tmp_path / "ca", "ca")
    pair = authority.issue("metrics.hvprobe.svc")
    mounted = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": authority.cert}
    files = {"hvprobe-tls": {name: file.read_bytes() for name, file in mounted.items()}}
    known, unknown = (
        authority.client_context(client) for client in (authority.issue("scraper"), None)
    )
    with running(image, daemonset("tls"), crio_seccomp, files=files) as agent:
        assert agent.url.startswith("https://")
        for trust in (known, unknown):
            trust.check_hostname = False
        with urllib.request.urlopen(agent.url + "/metrics", context=known) as answer:
            assert b"hvprobe_build_info" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(agent.url + "/metrics", context=unknown)
        with urllib.request.urlopen(agent.url + "/healthz", context=unknown) as answer:
            assert answer.read().startswith(b"alive")


def test_writes_nothing(image: Image, crio_seccomp: Json, guests: None) -> None:
    """No folder of the container is writable, not even /tmp, and the agent works all the same."""
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        tried = agent.execute(
            "sh", "-c", "touch /x /etc/x /tmp/x /opt/hvprobe/x /sys/kernel/tracing/x"
        )
        assert tried.stderr.count("Read-only file system") == 5


def test_speaks_utf8(image: Image, crio_seccomp: Json, guests: None) -> None:
    """A program that `kubectl exec` starts has a UTF-8 locale, although no shell has set one."""
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        program = "import os, sys; print(os.environ['LANG'], sys.stdout.encoding)"
        assert agent.execute("python3", "-c", program).stdout == "C.UTF-8 utf-8\n"
        wait_for(both_verified(agent), "both guests are verified")
        shown = agent.execute("hvprobe", "live", "--once")
        assert shown.returncode == 0, shown.stderr
        assert "default/alpha" in shown.stdout.replace(" ", "")


def test_capabilities_are_all_it_gets(image: Image, crio_seccomp: Json, guests: None) -> None:
    """In the capabilities variant the agent has the manifest's capabilities and can get no more."""
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{agent.main_tgid()}/status").read_text().splitlines()
            if ":\t" in line
        )
    expected = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_SYS_PTRACE": 19, "CAP_DAC_READ_SEARCH": 2}
    if "CAP_SYS_RESOURCE" in possible_capabilities():
        expected["CAP_SYS_RESOURCE"] = 24
    mask = sum(1 << bit for bit in expected.values())
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == mask
    assert status["NoNewPrivs"] == "1"


def test_leaves_nothing_behind(image: Image, crio_seccomp: Json, guests: None) -> None:
    """When the container is deleted, the kernel no longer has any of its BPF programs."""
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        programs = program_ids(agent.main_tgid())
        assert programs
        assert all(program_exists(number) for number in programs)
    wait_for(
        lambda: not any(program_exists(number) for number in programs),
        "the kernel has freed the programs",
    )


@pytest.mark.parametrize(
    ("missing", "beta", "beta_verified"),
    [
        # Without BPF, the ledger's silence about the emulated guest proves nothing, so its type is
        # only inferred.
        ("CAP_BPF", TCG, 0.0),
        ("CAP_PERFMON", TCG, 0.0),
        # Without the emulated guest's descriptors its type is unknown.
        ("CAP_SYS_PTRACE", UNKNOWN, 0.0),
        ("CAP_DAC_READ_SEARCH", UNKNOWN, 0.0),
    ],
)
def test_names_what_is_missing(
    image: Image,
    crio_seccomp: Json,
    guests: None,
    missing: str,
    beta: Json,
    beta_verified: float,
) -> None:
    """Each missing capability costs what the manual says, and the doctor names that one only."""
    with running(image, daemonset("capabilities"), crio_seccomp, without=[missing]) as agent:
        wait_for(
            lambda: samples(agent, "kubevirt_vmi_hypervisor_verified").get(labels(ALPHA)) == 1.0,
            "the KVM guest is verified all the same",
        )
        types = samples(agent, "kubevirt_vmi_hypervisor_info")
        assert types == {labels(ALPHA, KVM): 1.0, labels(BETA, beta): 1.0}
        proven = samples(agent, "kubevirt_vmi_hypervisor_verified")
        assert proven[labels(BETA)] == beta_verified
        doctor = agent.execute("hvprobe", "doctor")
    (line,) = [line for line in doctor.stdout.splitlines() if "permissions:" in line]
    assert f"permissions: {missing} is missing; " in line
    lost_bpf = missing in ("CAP_BPF", "CAP_PERFMON")
    assert doctor.returncode == (1 if lost_bpf else 0)
    if lost_bpf:
        (warning,) = [line for line in agent.log if "WARNING no BPF" in line]
        assert set(re.findall(r"CAP_\w+", warning)) == {missing}


def test_what_the_runtimes_filter_costs(image: Image, crio_seccomp: Json, guests: None) -> None:
    """CRI-O's RuntimeDefault denies perf_event_open. Verdicts stay verified.

    Only the hooks that need no perf event are attached.
    """
    filtered = copy.deepcopy(daemonset("capabilities"))
    (container,) = filtered["spec"]["template"]["spec"]["containers"]
    container["securityContext"]["seccompProfile"]["type"] = "RuntimeDefault"
    with running(image, filtered, crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        hooks = agent.samples("hvprobe_hook_attached")
        doctor = agent.execute("hvprobe", "doctor")
    assert doctor.returncode == 0
    # The agent has every capability, and the call is refused all the same.
    assert "permissions: incomplete" in doctor.stdout
    backends = {dict(found)["backend"] for found, value in hooks.items() if value == 1.0}
    assert backends == {"raw_tracepoint"}


def changed(**pod: object) -> Json:
    """The capabilities DaemonSet with other values for some fields of its pod."""
    manifest = copy.deepcopy(daemonset("capabilities"))
    spec = manifest["spec"]["template"]["spec"]
    spec.update(pod)
    return manifest


def test_needs_the_nodes_process_numbers(image: Image, crio_seccomp: Json, guests: None) -> None:
    """Without hostPID the agent sees no guest, and its log says that the pod needs it."""
    with running(image, changed(hostPID=False), crio_seccomp) as agent:
        assert samples(agent, "kubevirt_vmi_hypervisor_info") == {}
    (warning,) = [line for line in agent.log if "WARNING no BPF" in line]
    assert "give the pod hostPID: true" in warning


def test_needs_root(image: Image, crio_seccomp: Json, guests: None) -> None:
    """A user other than root has no capabilities, and the log names the two that BPF needs."""
    manifest = changed()
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["securityContext"]["runAsUser"] = 1000
    with running(image, manifest, crio_seccomp) as agent:
        status = Path(f"/proc/{agent.main_tgid()}/status").read_text()
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    (warning,) = [line for line in agent.log if "WARNING no BPF" in line]
    assert set(re.findall(r"CAP_\w+", warning)) == {"CAP_BPF", "CAP_PERFMON"}


def test_does_without_tracefs(image: Image, crio_seccomp: Json, guests: None) -> None:
    """Without the node's tracefs, verdicts are verified and only two hooks are missing."""
    manifest = changed()
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = container["volumeMounts"]
    container["volumeMounts"] = [mount for mount in mounts if mount["name"] != "tracefs"]
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        with_tracefs = attached(agent)
    with running(image, manifest, crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        assert with_tracefs - attached(agent) == {"sched_process_fork", "sched_process_free"}


def attached(agent: Container) -> set[str]:
    """The names of the attached hooks."""
    found = agent.samples("hvprobe_hook_attached")
    return {dict(labels)["hook"] for labels, value in found.items() if value == 1.0}


def test_stays_within_its_memory(image: Image, crio_seccomp: Json, guests: None) -> None:
    """The agent compiles and starts within the memory limit, and then stays within the request.

    The limit is enforced. The request is compared with what kubelet counts: the container's memory
    without file pages that are not in recent use (cadvisor's working set).
    """
    manifest = daemonset("capabilities")
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    wanted = {
        kind: int(found["memory"].removesuffix("Mi"))
        for kind, found in container["resources"].items()
    }
    with running(image, manifest, crio_seccomp) as agent:
        for _ in range(50):
            agent.get("/metrics")
        used = memory_of(agent.main_tgid())
        print(json.dumps({name: round(value / 2**20, 1) for name, value in used.items()}))
    assert used["limit"] == wanted["limits"] * 2**20
    assert used["oom_kills"] == 0
    assert used["working_set"] < wanted["requests"] * 2**20
