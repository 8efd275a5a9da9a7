"""The image run by a real OCI runtime on this machine's kernel, as each DaemonSet asks for it.

Beside it run a KVM and a TCG guest of user 107, as virt-launcher starts them.
"""

import copy
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from deploy_render import rendered
from image_build import Image
from image_container import Container, possible_capabilities, running
from image_qemu import QEMU_USER, QemuAsUser
from kernel_world import wait_for
from required import missing_for_guests, require

pytestmark = pytest.mark.timeout(900)
Json = dict[str, Any]
VARIANTS = ("privileged", "capabilities")
ALPHA = {"namespace": "default", "name": "alpha", "node": "worker-1"}
BETA = {"namespace": "lab", "name": "beta", "node": "worker-1"}
KVM, TCG, UNKNOWN = ({"hypervisor_type": kind} for kind in ("kvm", "tcg", "unknown"))


@pytest.fixture(scope="module")
def guests() -> Iterator[None]:
    """default/alpha on KVM and lab/beta emulated, both of user 107, running all the time."""
    require("image", missing_for_guests())
    device = Path("/dev/kvm")
    owner = device.stat().st_uid
    mode = device.stat().st_mode
    device.chmod(0o666)
    try:
        with QemuAsUser("default_alpha", "kvm"), QemuAsUser("lab_beta", "tcg"):
            yield
    finally:
        device.chmod(mode)
        assert device.stat().st_uid == owner != QEMU_USER


def daemonset(overlay: str) -> Json:
    return rendered(overlay).one("DaemonSet")


def samples(agent: Container, metric: str) -> dict[frozenset[tuple[str, str]], float]:
    """Value by labels, of the two guests: the node may run others."""
    ours = (set(ALPHA.items()), set(BETA.items()))
    return {
        frozenset(labels): value
        for labels, value in agent.samples(metric).items()
        if any(guest <= set(labels) for guest in ours)
    }


def labels(*parts: Json) -> frozenset[tuple[str, str]]:
    return frozenset(pair for part in parts for pair in part.items())


def both_verified(agent: Container) -> Callable[[], bool]:
    """Whether alpha is shown as kvm, beta as tcg, and both as proven."""

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
    """Each variant tells alpha from beta, verified, and `hvprobe doctor` in it finds no fault."""
    with running(image, daemonset(variant), crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        assert samples(agent, "kubevirt_vmi_hypervisor_fallback")[labels(BETA)] == 1.0
        doctor = agent.execute("hvprobe", "doctor")
        assert doctor.returncode == 0, doctor.stdout
        assert "may hvprobe do what it needs: yes" in doctor.stdout
        assert agent.get("/readyz") == "ready\n"


def test_serves_https(image: Image, crio_seccomp: Json, guests: None, tmp_path: Path) -> None:
    """The TLS variant serves the certificate that cert-manager would mount."""
    authority = Authority(tmp_path / "ca", "ca")
    pair = authority.issue("metrics.hvprobe.svc")
    files = {"hvprobe-tls": {"tls.crt": pair.cert.read_bytes(), "tls.key": pair.key.read_bytes()}}
    with running(image, daemonset("tls"), crio_seccomp, files=files) as agent:
        assert agent.url.startswith("https://")
        trust = authority.client_context()
        trust.check_hostname = False
        with urllib.request.urlopen(agent.url + "/metrics", context=trust) as answer:
            assert b"hvprobe_build_info" in answer.read()


def test_writes_nothing(image: Image, crio_seccomp: Json, guests: None) -> None:
    """The container's root cannot be written, and the agent leaves nothing in /tmp."""
    with running(image, daemonset("capabilities"), crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        tried = agent.execute("sh", "-c", "touch /x /etc/x /opt/hvprobe/x /sys/kernel/tracing/x")
        assert tried.stderr.count("Read-only file system") == 4
        assert agent.execute("find", "/tmp", "-mindepth", "1").stdout == ""


def test_capabilities_are_all_it_gets(image: Image, crio_seccomp: Json, guests: None) -> None:
    """In the capabilities variant the process has those of the manifest, and cannot get more."""
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


@pytest.mark.parametrize(
    ("missing", "beta", "beta_verified"),
    [
        # Without BPF the emulated guest's silence proves nothing, so its type is inferred.
        ("CAP_BPF", TCG, 0.0),
        ("CAP_PERFMON", TCG, 0.0),
        # Without its descriptors nothing can be said of the emulated guest at all.
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
    """Each capability taken away costs what the manual says, and the doctor names it alone."""
    with running(image, daemonset("capabilities"), crio_seccomp, without=[missing]) as agent:
        wait_for(
            lambda: samples(agent, "kubevirt_vmi_hypervisor_verified").get(labels(ALPHA)) == 1.0,
            "the kvm guest is verified all the same",
        )
        types = samples(agent, "kubevirt_vmi_hypervisor_info")
        assert types == {labels(ALPHA, KVM): 1.0, labels(BETA, beta): 1.0}
        proven = samples(agent, "kubevirt_vmi_hypervisor_verified")
        assert proven[labels(BETA)] == beta_verified
        doctor = agent.execute("hvprobe", "doctor")
    (line,) = [it for it in doctor.stdout.splitlines() if "may hvprobe do what it needs" in it]
    assert f"what it needs: {missing} is missing; " in line
    lost_bpf = missing in ("CAP_BPF", "CAP_PERFMON")
    assert doctor.returncode == (1 if lost_bpf else 0)
    if lost_bpf:
        (warning,) = [it for it in agent.log if "WARNING no BPF" in it]
        assert missing in warning


def test_what_the_runtimes_filter_costs(image: Image, crio_seccomp: Json, guests: None) -> None:
    """CRI-O's RuntimeDefault denies perf_event_open: verdicts stay verified, those hooks go."""
    filtered = copy.deepcopy(daemonset("capabilities"))
    (container,) = filtered["spec"]["template"]["spec"]["containers"]
    container["securityContext"]["seccompProfile"]["type"] = "RuntimeDefault"
    with running(image, filtered, crio_seccomp) as agent:
        wait_for(both_verified(agent), "both guests are verified")
        hooks = agent.samples("hvprobe_hook_attached")
    backends = {dict(found)["backend"] for found, value in hooks.items() if value == 1.0}
    assert backends == {"raw_tracepoint"}


def test_stays_within_its_memory(image: Image, crio_seccomp: Json, guests: None) -> None:
    """After many scrapes the agent has used less memory than the manifest requests."""
    manifest = daemonset("capabilities")
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    requested = int(container["resources"]["requests"]["memory"].removesuffix("Mi"))
    with running(image, manifest, crio_seccomp) as agent:
        for _ in range(50):
            agent.get("/metrics")
        status = Path(f"/proc/{agent.main_tgid()}/status").read_text()
        (peak_kib,) = [int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line]
        print(json.dumps({"VmHWM_MiB": peak_kib / 1024}))
    assert peak_kib / 1024 < requested
