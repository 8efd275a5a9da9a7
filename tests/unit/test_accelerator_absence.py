# SPDX-License-Identifier: Apache-2.0
"""Why a node has no KVM: every reason, their order, and what is said of unread facts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from probes.host.emulation import Finding, unknown
from probes.host.kvm_support import (
    OPTIONS,
    Cpu,
    KernelLog,
    KernelMessage,
    KvmSupport,
    ModuleRule,
)
from probes.judge.accelerator_absence import (
    SVM,
    VENDORS,
    VMX,
    Absence,
    AbsenceFound,
    absence_of,
    extension_of,
)

INTEL, AMD = "GenuineIntel", "AuthenticAMD"
BY_BIOS = {
    "feat_ctl, not in TXT": "x86/cpu: VMX (outside TXT) disabled by BIOS",
    "feat_ctl, in TXT": "x86/cpu: VMX (inside TXT) disabled by BIOS",
    "cpu/amd": "SVM disabled (by BIOS) in MSR_VM_CR",
    "kvm_amd": "kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR",
    "kvm_intel": "kvm_intel: VMX not enabled (by BIOS) in MSR_IA32_FEAT_CTL on CPU 0",
    "kvm": "kvm: disabled by bios",
    "kvm, vendor": "kvm: support for 'kvm_amd' disabled by bios",
    "kvm, TXT": "kvm: disable TXT in the BIOS or activate TXT before enabling KVM",
}
"""Messages of kernels of different age."""


def known(value: Any) -> Finding[Any]:  # noqa: ANN401 - any fact
    return Finding(value=value, text="it was read")


def cpu(vendor: str, flags: str) -> Finding[Cpu]:
    return known(Cpu(vendor=vendor, flags=frozenset(flags.split())))


def log(*texts: str, level: int = 3, complete: bool = True) -> Finding[KernelLog]:
    messages = tuple(KernelMessage(level=level, text=text) for text in texts)
    return known(KernelLog(messages=messages, complete=complete))


def options(on: str) -> Finding[Mapping[str, bool]]:
    return known({name: name.removeprefix("CONFIG_") in on.split() for name in OPTIONS})


def rule(module: str, *, replaces: bool) -> ModuleRule:
    word = f"install {module} /bin/false" if replaces else f"blacklist {module}"
    return ModuleRule(module=module, line=word, file="/etc/modprobe.d/a.conf", replaces=replaces)


NODE = KvmSupport(
    machine="x86_64",
    release="6.12.0",
    cpu=cpu(INTEL, "fpu vmx"),
    options=options("KVM KVM_INTEL KVM_AMD"),
    log=log(),
    command_line=known(("root=/dev/sda1", "quiet")),
    loaded=known(frozenset()),
    installed=known(frozenset({"kvm", "kvm_intel", "kvm_amd"})),
    rules=known(()),
)
"""A node that lacks only ``modprobe kvm_intel``."""
ON_AMD = {"cpu": cpu(AMD, "fpu svm")}
ON_ARM = {"machine": "aarch64", "cpu": unknown("/proc/cpuinfo names no CPU flags")}


def of(**facts: Any) -> AbsenceFound:  # noqa: ANN401 - any fact
    return absence_of(replace(NODE, **facts))


CASES: dict[str, tuple[dict[str, Any], Absence, str, str]] = {
    "not loaded": (
        {},
        Absence.NOT_LOADED,
        "kvm_intel is not loaded",
        "modprobe kvm_intel, and name it in /etc/modules-load.d/kvm.conf",
    ),
    "not loaded on AMD": (ON_AMD, Absence.NOT_LOADED, "kvm_amd is not loaded", "modprobe kvm_amd"),
    "refused and not loaded": (
        {"log": log("kvm_intel: Failed to set up")},
        Absence.NOT_LOADED,
        "kvm_intel is not loaded; the kernel says `kvm_intel: Failed to set up`",
        "modprobe kvm_intel",
    ),
    "no error and not loaded": (
        {"log": log("kvm: Nested Virtualization enabled", level=6)},
        Absence.NOT_LOADED,
        "kvm_intel is not loaded",
        "modprobe kvm_intel",
    ),
    "kvm without its vendor module": (
        {"loaded": known(frozenset({"kvm"}))},
        Absence.NOT_LOADED,
        "kvm_intel is not loaded",
        "modprobe kvm_intel",
    ),
    "built in and failed": (
        {"loaded": known(frozenset({"kvm", "kvm_intel"})), "log": log("kvm_intel: no")},
        Absence.MODULE_FAILED,
        "kvm_intel is there, but has not registered the device; the kernel says `kvm_intel: no`",
        "dmesg | grep -i kvm",
    ),
    "kernel without KVM": (
        {"options": options("")},
        Absence.KERNEL_WITHOUT_KVM,
        "the kernel 6.12.0 is built without CONFIG_KVM",
        "boot a kernel that is built with CONFIG_KVM and CONFIG_KVM_INTEL",
    ),
    "kernel without the vendor's KVM": (
        {**ON_AMD, "options": options("KVM KVM_INTEL")},
        Absence.KERNEL_WITHOUT_KVM,
        "the kernel 6.12.0 is built without CONFIG_KVM_AMD",
        "CONFIG_KVM_AMD",
    ),
    "module not installed": (
        {"installed": known(frozenset({"kvm"}))},
        Absence.NOT_INSTALLED,
        "the kernel 6.12.0 has no module kvm_intel on this node",
        "install the package",
    ),
    "nested is off": (
        {"cpu": cpu(INTEL, "fpu hypervisor")},
        Absence.NOT_NESTED,
        (
            "the node is a VM, and its hypervisor offers no nested virtualization: "
            "/proc/cpuinfo has the flag hypervisor, not vmx"
        ),
        "enable nested virtualization on the outer hypervisor",
    ),
    "nested is off on AMD": (
        {"cpu": cpu(AMD, "fpu hypervisor")},
        Absence.NOT_NESTED,
        "not svm",
        "a CPU model with svm",
    ),
    "nested is off on an unknown CPU": (
        {"cpu": cpu("QEMUQEMUQEMU", "fpu hypervisor")},
        Absence.NOT_NESTED,
        "not vmx or svm",
        "a CPU model with vmx or svm",
    ),
    "a VM whose firmware locked it": (
        {"cpu": cpu(INTEL, "fpu hypervisor"), "log": log(BY_BIOS["feat_ctl, not in TXT"])},
        Absence.FIRMWARE,
        "firmware has switched Intel VT-x off",
        "enable Intel VT-x in the firmware",
    ),
    "no flag": (
        {"cpu": cpu(INTEL, "fpu")},
        Absence.NO_EXTENSION,
        (
            "/proc/cpuinfo has no flag vmx: firmware has switched Intel VT-x off, or the CPU "
            "has none"
        ),
        "enable Intel VT-x in the firmware (BIOS, UEFI) and restart the node",
    ),
    "no flag on an unknown CPU": (
        {"cpu": cpu("Someone", "fpu")},
        Absence.NO_EXTENSION,
        "/proc/cpuinfo has no flag vmx or svm",
        "enable Intel VT-x or AMD-V (SVM) in the firmware",
    ),
    "no flag and no log": (
        {"cpu": cpu(AMD, "fpu"), "log": unknown("the kernel's log cannot be read (no)")},
        Absence.NO_EXTENSION,
        "or the CPU has none; the kernel's log cannot be read (no)",
        "enable AMD-V (SVM)",
    ),
    "no flag and a log without its beginning": (
        {"cpu": cpu(AMD, "fpu"), "log": log(complete=False)},
        Absence.NO_EXTENSION,
        "the beginning of the kernel's log, which would say so, is no longer there",
        "enable AMD-V (SVM)",
    ),
    "module_blacklist": (
        {"command_line": known(("module_blacklist=floppy,kvm-intel",))},
        Absence.FORBIDDEN,
        (
            "the kernel's command line keeps kvm_intel from being loaded: "
            "`module_blacklist=floppy,kvm-intel`"
        ),
        "remove module_blacklist from the kernel's command line and restart the node",
    ),
    "module_blacklist of kvm": (
        {"command_line": known(("module_blacklist=kvm",))},
        Absence.FORBIDDEN,
        "module_blacklist=kvm",
        "remove module_blacklist",
    ),
    "modprobe.blacklist": (
        {**ON_AMD, "command_line": known(('modprobe.blacklist="kvm_amd"',))},
        Absence.FORBIDDEN,
        "keeps kvm_amd from being loaded",
        "remove modprobe.blacklist",
    ),
    "blacklist": (
        {"rules": known((rule("kvm_amd", replaces=True), rule("kvm_intel", replaces=False)))},
        Absence.FORBIDDEN,
        "/etc/modprobe.d/a.conf keeps kvm_intel from being loaded: `blacklist kvm_intel`",
        "remove that line, then modprobe kvm_intel",
    ),
    "install": (
        {"rules": known((rule("kvm_intel", replaces=True),))},
        Absence.FORBIDDEN,
        "`install kvm_intel /bin/false`",
        "remove that line",
    ),
    "install of kvm": (
        {"rules": known((rule("kvm", replaces=True),))},
        Absence.FORBIDDEN,
        "/etc/modprobe.d/a.conf keeps kvm_intel from being loaded: `install kvm /bin/false`",
        "remove that line",
    ),
    "arm64 outside EL2": (
        {**ON_ARM, "log": log("kvm [1]: HYP mode not available", level=6)},
        Absence.NOT_IN_EL2,
        (
            "the kernel was not started in EL2, the CPU's hypervisor mode; it says "
            "`kvm [1]: HYP mode not available`"
        ),
        "let the firmware start the kernel in EL2",
    ),
    "arm64 at EL1": (
        {**ON_ARM, "log": log("CPU: All CPU(s) started at EL1", level=6)},
        Absence.NOT_IN_EL2,
        "`CPU: All CPU(s) started at EL1`",
        "EL2",
    ),
    "arm64 switched off": (
        {**ON_ARM, "command_line": known(("kvm-arm.mode=none",))},
        Absence.FORBIDDEN,
        "`kvm-arm.mode=none`",
        "remove kvm-arm.mode=none",
    ),
    "arm64 without KVM": (
        {**ON_ARM, "options": options("")},
        Absence.KERNEL_WITHOUT_KVM,
        "built without CONFIG_KVM",
        "boot a kernel that is built with CONFIG_KVM",
    ),
    "arm64 in EL2": (
        {**ON_ARM, "log": log("CPU: All CPU(s) started at EL2", level=6)},
        Absence.UNKNOWN,
        "it is unknown why: hvprobe knows no reason on aarch64",
        "dmesg | grep -i kvm",
    ),
    "s390x": (
        {**ON_ARM, "machine": "s390x", "options": unknown("no config")},
        Absence.UNKNOWN,
        "it is unknown why: hvprobe knows no reason on s390x; no config",
        "dmesg",
    ),
    "no cpuinfo": (
        {"cpu": unknown("the CPU's flags cannot be read (no)")},
        Absence.UNKNOWN,
        "it is unknown why: the CPU's flags cannot be read (no)",
        "dmesg",
    ),
    "no cpuinfo, but a message": (
        {"cpu": unknown("no"), "log": log(BY_BIOS["kvm"])},
        Absence.FIRMWARE,
        "firmware has switched Intel VT-x or AMD-V (SVM) off",
        "enable Intel VT-x or AMD-V (SVM)",
    ),
    "no sysfs": (
        {"loaded": unknown("the loaded modules cannot be read (no)")},
        Absence.UNKNOWN,
        "it is unknown why: the loaded modules cannot be read (no)",
        "dmesg",
    ),
    "no files of the node": (
        {
            "command_line": unknown("no command line"),
            "rules": unknown("no modprobe.d"),
            "installed": unknown("no modules.dep"),
            "options": unknown("no config"),
        },
        Absence.NOT_LOADED,
        "kvm_intel is not loaded; no command line; no modprobe.d; no modules.dep",
        "modprobe kvm_intel",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reason(name: str) -> None:
    """Each situation has its reason, which a sentence explains, and a remedy of one line."""
    facts, reason, sentence, remedy = CASES[name]
    found = of(**facts)
    assert found.reason is reason, found
    assert sentence in found.sentence
    assert remedy in found.remedy
    assert "\n" not in found.sentence + found.remedy


def test_each_reason_has_a_case() -> None:
    """No reason is left out of the table."""
    assert {case[1] for case in CASES.values()} == set(Absence)


@pytest.mark.parametrize("message", BY_BIOS)
@pytest.mark.parametrize("flags", ["fpu", "fpu vmx", "fpu svm", "fpu hypervisor"])
def test_what_kernels_say_of_firmware(message: str, flags: str) -> None:
    """A message decides, whether the kernel has cleared the CPU's flag or not (before v6.7)."""
    found = of(cpu=cpu(INTEL, flags), log=log("kvm: other", BY_BIOS[message], level=5))
    assert found.reason is Absence.FIRMWARE
    assert f"`{BY_BIOS[message]}`" in found.sentence


@pytest.mark.parametrize(
    "message",
    [
        "x86/cpu: SGX disabled by BIOS.",
        "Local APIC disabled by BIOS -- you can enable it with",
        "kvm_intel: VMX not supported by CPU 0",
        "kvm: Nested Virtualization enabled",
    ],
)
def test_other_messages_say_nothing_of_firmware(message: str) -> None:
    """What firmware switched off beside virtualization does not matter."""
    assert of(log=log(message)).reason is Absence.NOT_LOADED


@pytest.mark.parametrize(
    "message",
    [
        "kvm [4711]: vcpu0, guest rIP: 0x1 ignored rdmsr",
        "kvm-pvm: INTERNAL_ERROR in batch emul",
        "SVM: kvm_intel: quoted",
    ],
)
def test_errors_of_vms_are_not_quoted(message: str) -> None:
    """What KVM said of a VM, while it was loaded, does not explain that it is not."""
    assert of(log=log(message)).sentence == "kvm_intel is not loaded"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((rule("kvm", replaces=False),), ()),
        ((rule("kvm_amd", replaces=True),), ()),
        ((), ("module_blacklist=kvm_amd,kvmgt", "modprobe.blacklist=kvm", "quiet=kvm_intel")),
        ((), ("module_blacklist", "module_blacklist=", "=kvm_intel")),
    ],
)
def test_what_forbids_nothing(rules: tuple[ModuleRule, ...], words: tuple[str, ...]) -> None:
    """A dependency is loaded even from the blacklist, and other modules do not matter."""
    assert of(rules=known(rules), command_line=known(words)).reason is Absence.NOT_LOADED


def test_order() -> None:
    """The reason that no other step can get around comes first."""
    facts: dict[str, Any] = {
        "rules": known((rule("kvm_intel", replaces=True),)),
        "installed": known(frozenset()),
    }
    assert of(**facts).reason is Absence.FORBIDDEN
    facts["cpu"] = cpu(INTEL, "fpu")
    assert of(**facts).reason is Absence.NO_EXTENSION
    facts["log"] = log(BY_BIOS["kvm"])
    assert of(**facts).reason is Absence.FIRMWARE
    facts["options"] = options("")
    assert of(**facts).reason is Absence.KERNEL_WITHOUT_KVM


def test_a_module_that_is_loaded_is_not_forbidden() -> None:
    """What keeps a module from being loaded explains nothing once it is loaded."""
    loaded = known(frozenset({"kvm", "kvm_intel"}))
    assert of(loaded=loaded, rules=known((rule("kvm_intel", replaces=True),))).reason is (
        Absence.MODULE_FAILED
    )


@pytest.mark.parametrize(
    ("vendor", "flags", "module"),
    [
        *((vendor, "fpu", extension.module) for vendor, extension in VENDORS.items()),
        ("  Shanghai  ", "fpu", "kvm_intel"),
        ("Someone", "fpu vmx", "kvm_intel"),
        ("Someone", "fpu svm", "kvm_amd"),
        ("Someone", "fpu", None),
    ],
)
def test_extension(vendor: str, flags: str, module: str | None) -> None:
    """The flag says which extension a CPU has. Without one its maker does."""
    found = extension_of(replace(NODE, cpu=cpu(vendor, flags)))
    assert (found.module if found else None) == module
    assert extension_of(replace(NODE, cpu=unknown("no"))) is None


def test_a_long_quotation_is_cut() -> None:
    """A line of the doctor stays short, whatever a message or a file says."""
    found = of(log=log("kvm: disabled by bios " + "x" * 1000))
    assert found.reason is Absence.FIRMWARE
    assert len(found.sentence) < 300
    assert found.sentence.endswith("…`")


@given(
    unread=some.sets(some.sampled_from([*CASES["no files of the node"][0], "cpu", "log", "loaded"]))
)
def test_unread_facts(unread: set[str]) -> None:
    """Whatever cannot be read, there is a reason, and it is never one that was not seen."""
    for machine in ("x86_64", "aarch64", "s390x"):
        found = of(machine=machine, **{name: unknown(f"no {name}") for name in unread})
        assert found.reason in (Absence.NOT_LOADED, Absence.UNKNOWN)
        if found.reason is Absence.NOT_LOADED:
            for name in unread & {"command_line", "rules", "installed"}:
                assert f"no {name}" in found.sentence


def test_the_names_of_extensions() -> None:
    """Both extensions have names of their own."""
    assert (VMX.flag, SVM.flag) == ("vmx", "svm")
    assert (VMX.module, SVM.module) == ("kvm_intel", "kvm_amd")
