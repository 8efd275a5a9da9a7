# SPDX-License-Identifier: Apache-2.0
"""The platforms on which hvprobe is tried: one row each, and the boots that rows share.

A platform is a kernel with what restricts an agent there: a security module in force, a setting, a
part of the kernel that is missing. Owns what each row sets up and what is expected of it.
tests/platform carries it out inside the guest; platform_matrix.py writes docs/platforms.md from
what came of it. Must not know how either does that.
"""

from collections.abc import Mapping
from dataclasses import replace

from vmtest.kernels import Architecture, GuestKernel, Suite, Transport, kernel_named
from vmtest.platform_model import ABSENT, Boot, Expected, Platform, Pod, Variant

SELECTION_VARIABLE = "HVPROBE_PLATFORMS"
"""Names of boots, separated by commas, or ``all``; unset: none, because each takes minutes."""
BOOT_VARIABLE = "HVPROBE_PLATFORM_BOOT"
"""In a guest: the name of its boot."""
SELINUX_POLICY = "selinux-policy"
"""In a guest's results: the policy that it loads, if it loads one."""
PROFILE = "cri-containerd.apparmor.d"
"""containerd's name of its default AppArmor profile (internal/cri/server, apparmor)."""
EXTRA_PACKAGES = ("apparmor", "runc")
LONE_PACKAGES = ("golang-github-containerd-containerd-dev",)
"""Without what they depend on: for containerd's template of its AppArmor profile."""


BOTH = (Variant.PRIVILEGED, Variant.CAPABILITIES)


def _same(expected: Expected) -> Mapping[Variant, Expected]:
    return dict.fromkeys(BOTH, expected)


def _yama(scope: int, expected: Mapping[Variant, Expected]) -> Platform:
    return Platform(
        name=f"yama-{scope}",
        title=f"Yama, ptrace_scope {scope}",
        how=f"sysctl `kernel.yama.ptrace_scope={scope}`",
        enter=(f"echo {scope} > /proc/sys/kernel/yama/ptrace_scope",),
        leave=("echo 0 > /proc/sys/kernel/yama/ptrace_scope",) if scope < 3 else (),
        expected=expected,
    )


ALL = Expected()
"""Everything: all verdicts are verified, and all exits are counted."""
DEBIAN = {
    Variant.PRIVILEGED: Expected(doctor=("ok: permissions: complete",)),
    Variant.CAPABILITIES: Expected(
        doctor=(
            "permissions: incomplete: not attached: ",
            "kernel.perf_event_paranoid=3 asks for: set that to 2 on the node, or run privileged",
        )
    ),
}
"""Debian's own setting leaves the agent with capabilities only raw tracepoints."""
ONLY_CAPABILITIES = {Variant.CAPABILITIES: DEBIAN[Variant.CAPABILITIES]}
WITHOUT_BPF = Expected(
    tcg="tcg, inferred",
    ability="inferred",
    log="no BPF: VMs on KVM are verified only by what /proc shows",
)


def _without_bpf(*words: str) -> Expected:
    return replace(WITHOUT_BPF, doctor=words)


MODULES = Boot(
    name="modules",
    kernel=kernel_named("6.1"),
    platforms=(
        Platform(
            name="debian",
            title="Debian 12, as it comes",
            how="AppArmor enabled, VMs under containerd's default profile, "
            "`kernel.perf_event_paranoid` 3",
            expected=DEBIAN,
            vms_confined=True,
        ),
        Platform(
            name="apparmor",
            title="AppArmor confines the agent as well",
            how="the agent's container under containerd's default profile, as without the "
            "manifest's `appArmorProfile`; VMs unconfined",
            expected={
                Variant.CAPABILITIES: Expected(
                    halted="unknown, inferred",
                    tcg="unknown, inferred",
                    cause="",
                    exits="",
                    doctor=(f"(2 now), which the AppArmor profile {PROFILE} denies; run hvprobe",),
                )
            },
            pod=Pod(apparmor=PROFILE),
        ),
        _yama(1, ONLY_CAPABILITIES),
        _yama(2, ONLY_CAPABILITIES),
        Platform(
            name="hidepid",
            title="hidepid",
            how="/proc mounted with `hidepid=ptraceable` on the node",
            enter=("mount -o remount,hidepid=ptraceable /proc",),
            leave=("mount -o remount,hidepid=off /proc",),
            expected=ONLY_CAPABILITIES,
        ),
    ),
)
MISSING = Boot(
    name="missing",
    kernel=kernel_named("6.1"),
    platforms=(
        Platform(
            name="no-btf",
            title="kernel without BTF",
            how="an empty file system mounted over `/sys/kernel/btf`: Debian has no kernel without",
            expected={
                Variant.PRIVILEGED: Expected(
                    doctor=("BTF (not needed) no", "missed runs: unknown"),
                )
            },
            pod=Pod(hidden=("/sys/kernel/btf",)),
        ),
        Platform(
            name="no-tracefs",
            title="tracefs not mounted",
            how="no tracefs in the container, which may not mount it",
            expected={
                Variant.CAPABILITIES: Expected(
                    doctor=("tracefs no", "mount tracefs on /sys/kernel/tracing")
                )
            },
            pod=Pod(without_tracefs=True),
        ),
        Platform(
            name="no-perf",
            title="perf_event_open denied",
            how="a seccomp filter, as CRI-O's default profile; `kernel.perf_event_paranoid` 2",
            enter=("echo 2 > /proc/sys/kernel/perf_event_paranoid",),
            leave=("echo 3 > /proc/sys/kernel/perf_event_paranoid",),
            expected={
                Variant.CAPABILITIES: Expected(
                    doctor=(
                        "permissions: incomplete: not attached: ",
                        "the seccomp filter in force denies perf_event_open: run with",
                    )
                )
            },
            pod=Pod(denied={"perf_event_open": "EPERM"}),
        ),
        Platform(
            name="no-bpf",
            title="bpf denied",
            how="a seccomp filter, as containerd's default profile had it before 1.7",
            expected={
                Variant.CAPABILITIES: _without_bpf(
                    "the seccomp filter in force denies bpf: run with seccompProfile Unconfined"
                )
            },
            pod=Pod(denied={"bpf": "EPERM"}),
        ),
        Platform(
            name="no-bpf-syscall",
            title="kernel without BPF",
            how="a seccomp filter that answers bpf(2) as a kernel without CONFIG_BPF_SYSCALL does "
            "(ENOSYS): Debian has no such kernel",
            expected={
                Variant.CAPABILITIES: _without_bpf(
                    "there is no bpf(2): this kernel is built without it (CONFIG_BPF_SYSCALL)"
                )
            },
            pod=Pod(denied={"bpf": "ENOSYS"}),
        ),
    ),
)
UNTRACEABLE = Boot(
    name="untraceable",
    kernel=kernel_named("6.1"),
    platforms=(
        _yama(
            3,
            _same(
                Expected(
                    halted="kvm, inferred",
                    tcg="tcg, inferred",
                    exits="",
                    doctor=("kernel.yama.ptrace_scope=3 denies; set it to 2 or less",),
                )
            ),
        ),
    ),
)
INTEGRITY = Boot(
    name="integrity",
    kernel=kernel_named("6.1"),
    kernel_arguments="lockdown=integrity",
    platforms=(
        Platform(
            name="integrity",
            title="lockdown integrity",
            how="kernel parameter `lockdown=integrity`, as Secure Boot sets it",
            expected={
                Variant.PRIVILEGED: Expected(
                    doctor=("ok: permissions: complete", "lockdown integrity"),
                ),
                Variant.CAPABILITIES: Expected(
                    doctor=(*DEBIAN[Variant.CAPABILITIES].doctor, "lockdown integrity"),
                ),
            },
        ),
    ),
)
CONFIDENTIALITY = Boot(
    name="confidentiality",
    kernel=kernel_named("6.1"),
    kernel_arguments="lockdown=confidentiality",
    platforms=(
        Platform(
            name="confidentiality",
            title="lockdown confidentiality",
            how="kernel parameter `lockdown=confidentiality`: raised later, it would leave tracefs",
            expected=_same(
                Expected(
                    doctor=(
                        "lockdown=confidentiality forbids kprobes and leaves tracefs empty",
                        "ok: KVM activity: detected by kvm_userspace_exit (raw_tracepoint)",
                    )
                )
            ),
        ),
    ),
)
CLOUD = Boot(
    name="cloud",
    kernel=GuestKernel(
        name="6.1-cloud",
        architecture=Architecture.AMD64,
        kernel_suite=Suite.BOOKWORM,
        root_suite=Suite.BOOKWORM,
        release=r"6\.1\.[0-9.]+-\d+-cloud-amd64",
        kvm_modules=("kvm_amd",),
        transport=Transport.VIRTIOFS,
    ),
    platforms=(
        Platform(
            name="cloud",
            title="Debian's cloud kernel",
            how="linux-image-cloud-amd64 of Debian 12",
            expected=DEBIAN,
        ),
    ),
)

SELINUX = Boot(
    name="selinux",
    kernel=kernel_named("6.1"),
    # So the console has each denial.
    kernel_arguments="security=selinux selinux=1 enforcing=1 audit=1 loglevel=6",
    selinux=True,
    platforms=(
        Platform(
            name="selinux",
            title="SELinux enforcing",
            how="Debian's reference policy (selinux-policy-default with the module `container` of "
            "its source package); the agent is `spc_t`, as in the manifests, VMs are `svirt_t` "
            "(emulated: `svirt_prot_exec_t`) with categories; `kernel.perf_event_paranoid` 3. The "
            "guest's shared root has no labels: containers' roots are mounted with `context=`, and "
            "`tests/platform/node.cil` stands for the rest",
            # This policy lets spc_t open perf events and read them, but not set their program.
            expected={
                **DEBIAN,
                Variant.PRIVILEGED: Expected(
                    doctor=(
                        "permissions: incomplete: not attached: ",
                        "SELinux (type spc_t) denies perf_event_open: the audit log of the node",
                    )
                ),
            },
        ),
        Platform(
            name="selinux-container",
            title="SELinux confines the agent as well",
            how="the same with the agent in `container_t`, as without the manifest's "
            "`seLinuxOptions`",
            expected={
                Variant.CAPABILITIES: Expected(
                    kvm=ABSENT,
                    halted=ABSENT,
                    tcg=ABSENT,
                    cause="",
                    exits="",
                    ability="inferred",
                    doctor=(
                        "SELinux (type container_t) denies; run hvprobe as spc_t",
                        "SELinux (type container_t) denies bpf: run hvprobe as spc_t",
                    ),
                    log="SELinux (type container_t) denies bpf: run hvprobe as spc_t",
                )
            },
            pod=Pod(selinux="container_t"),
        ),
        Platform(
            name="selinux-permissive",
            title="SELinux permissive",
            how="the same, where nothing is enforced (`setenforce 0`)",
            enter=("echo 0 > /sys/fs/selinux/enforce",),
            leave=("echo 1 > /sys/fs/selinux/enforce",),
            expected=ONLY_CAPABILITIES,
            pod=Pod(selinux="container_t"),
        ),
    ),
)

WHAT = "boot of platforms"
BOOTS = (MODULES, SELINUX, UNTRACEABLE, INTEGRITY, CONFIDENTIALITY, MISSING, CLOUD)
