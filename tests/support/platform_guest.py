# SPDX-License-Identifier: Apache-2.0
"""Inside a guest of vmtest: its VMs, and the agent in the container of each DaemonSet.

Owns what makes a guest a node: security modules' file systems, VMs of user 107, and a container's
root, which is the guest's own root with this repository in it. runc runs the container, as the
manifests specify it. Must not know what is expected of an agent.
"""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from probes.host.device_age import CLOCK_TOLERANCE_S
from tests.support import platform_selinux as selinux
from tests.support.image_container import Container, host_devices
from tests.support.image_pod import World, mount, runtime_config
from tests.support.image_qemu import QEMU_USER
from tests.support.kernel_world import QEMU, KvmLoad, Started, machine_arguments, wait_for
from vmtest.platform_model import Platform, Pod, Variant
from vmtest.platforms import PROFILE

Json = dict[str, Any]
MANIFESTS = Path("/results/manifests")
"""The DaemonSets, as JSON: the guest has no parser of YAML."""
ROOT = Path("/run/image")
SHARES = ("repo", "packages")
"""What is mounted into it besides the guest's root."""
_TEMPLATE = Path(
    "/usr/share/gocode/src/github.com/containerd/containerd/contrib/apparmor/template.go"
)
_TRACEFS = "/sys/kernel/tracing"
_ERRORS = {"EPERM": 1, "ENOSYS": 38}
_NAMES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def shell(*commands: str) -> None:
    """Run shell commands; one that fails ends the test."""
    for command in commands:
        done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def prepare() -> None:
    """Make a node of a guest that has just been booted."""
    looked_up_s = _look_up_device()
    if not Path("/sys/kernel/security/lsm").exists():
        shell("mount -t securityfs securityfs /sys/kernel/security")
    ROOT.mkdir()
    shell(
        # The guest is discarded afterwards, so its device keeps this mode.
        "chmod 666 /dev/kvm",
        # Each container's root is read-only: byte code is made here, once.
        "python3 -m compileall -q /repo/probes /repo/ebpf",
    )
    if selinux.POLICY.exists():
        selinux.load()
        selinux.mount_labelled(ROOT, SHARES)
    else:
        shell(
            f"mount --bind / {ROOT}",
            *(f"mount --rbind /{share} {ROOT}/{share}" for share in SHARES),
        )
    if "apparmor" in Path("/sys/kernel/security/lsm").read_text():
        load_profile()
    older_s = looked_up_s + 2 * CLOCK_TOLERANCE_S
    wait_for(lambda: time.monotonic() > older_s, "VMs will be younger than the device")


def _look_up_device() -> float:
    """Look the accelerator up in sysfs, as udev does when it appears; return when that was.

    sysfs remembers that moment, by which the agent knows that VMs are younger (device_age.py).
    """
    assert Path("/sys/class/misc/kvm").stat()
    return time.monotonic()


def load_profile() -> None:
    """Load containerd's default profile: its template, filled in as containerd does."""
    found = re.search(r"defaultTemplate = `(.*?)`", _TEMPLATE.read_text(), re.DOTALL)
    assert found
    text = re.sub(r"\{\{range.*?Imports\}\}.*?\{\{end\}\}", "", found[1], flags=re.DOTALL)
    text = text.replace("{{.Name}}", PROFILE).replace("{{.DaemonProfile}}", "unconfined")
    text = re.sub(r"\{\{if .*?\}\}.*?\{\{end\}\}", "", text, flags=re.DOTALL)
    assert "{{" not in text, text
    imports = "#include <tunables/global>\n"
    text = imports + text.replace("{\n", "{\n  #include <abstractions/base>\n", 1)
    done = subprocess.run(
        ["apparmor_parser", "--replace", "--skip-cache"],
        input=text,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def vms(kvmload: Path, *, confined: bool) -> Iterator[None]:
    """Three VMs: default/alpha on KVM, default/halted on KVM, and lab/beta, which is emulated."""
    program = Path(tempfile.mkdtemp(prefix="vm-")) / "qemu-kvm"
    shutil.copy(kvmload, program)
    program.parent.chmod(0o755)
    with contextlib.ExitStack() as running:
        for name, accel in (("default_alpha", "kvm"), ("lab_beta", "tcg")):
            running.enter_context(_qemu(_confining(accel, confined=confined), name, accel))
        halted = ("-name", "guest=default_halted", "--statistics", "--userspace-exits", "11")
        before = _confining("kvm", confined=confined)
        load = KvmLoad(program, *halted, "--then", "halt", "--tenant", before=before)
        running.enter_context(load).finish_counted_part()
        yield


def _confining(accel: str, *, confined: bool) -> Sequence[str]:
    """A command that runs another one as a VM is confined."""
    if selinux.POLICY.exists():
        return selinux.as_vm(accel)
    return ("aa-exec", f"--profile={PROFILE}", "--") if confined else ()


def _qemu(before: Sequence[str], name: str, accel: str) -> Started:
    become = ["setpriv", f"--reuid={QEMU_USER}", f"--regid={QEMU_USER}", "--clear-groups"]
    return Started(
        [
            *(*before, *become, "--pdeathsig=KILL", "--", QEMU, "-accel", accel),
            *("-name", f"guest={name},debug-threads=on", *machine_arguments(accel)),
            *("-display", "none", "-nodefaults", "-m", "64"),
        ],
    )


@contextlib.contextmanager
def agent(variant: Variant, pod: Pod) -> Iterator[Container]:
    """Run the agent in the container of a DaemonSet, changed as the platform says."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        config = container_config(variant, pod, place)
        (place / "config.json").write_text(json.dumps(config, indent=1))
        container = Container(place, place / "runc")
        try:
            yield container
        finally:
            container.execute("kill", "-TERM", "1")
            shell(f"runc --root {place}/runc delete --force {container.name}")
            container.kill()


def container_config(variant: Variant, pod: Pod, scratch: Path) -> Json:
    """config.json of the agent's container."""
    daemonset = json.loads((MANIFESTS / f"{variant.value}.json").read_text())
    world = World(
        root=ROOT,
        image={
            "Entrypoint": ["/usr/bin/python3", "-m", "probes"],
            "Env": ["PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "PYTHONPATH=/repo"],
        },
        scratch=scratch,
        capabilities=frozenset(_NAMES),
        seccomp={},
        environment={"HVPROBE_LISTEN": "127.0.0.1:0", "HVPROBE_STANDALONE": "true"},
        devices=host_devices(),
        node="guest",
    )
    config = runtime_config(daemonset, world)
    if pod.apparmor is not None:
        config["process"]["apparmorProfile"] = pod.apparmor
    if selinux.POLICY.exists():
        context = daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]
        selinux.label(config, pod.selinux or selinux.type_of(context))
    if pod.denied:
        config["linux"]["seccomp"] = _filter(pod)
    if pod.without_tracefs:
        mounts = [each for each in config["mounts"] if each["destination"] != _TRACEFS]
        config["mounts"] = mounts
    config["mounts"] += [mount(folder, "tmpfs", ["ro", "mode=755"]) for folder in pod.hidden]
    return config


def _filter(pod: Pod) -> Json:
    """Return a seccomp filter that denies these system calls only."""
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": _ERRORS[error]}
            for call, error in pod.denied.items()
        ],
    }


class Stage:
    """The guest, set up for one platform at a time."""

    def __init__(self, kvmload: Path) -> None:
        self._kvmload = kvmload
        self._platform: Platform | None = None
        self._running = contextlib.ExitStack()

    def set_up(self, platform: Platform) -> None:
        """Undo the platform before this one, and set this one up, with VMs of its own."""
        if self._platform is platform:
            return
        self.clear()
        self._platform = platform
        shell(*platform.enter)
        self._running.callback(shell, *platform.leave)
        self._running.enter_context(vms(self._kvmload, confined=platform.vms_confined))

    def clear(self) -> None:
        """End the VMs and undo the platform."""
        self._running.close()
        self._platform = None
