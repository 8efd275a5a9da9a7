# SPDX-License-Identifier: Apache-2.0
"""Finds out why a node has no KVM, for ``hvprobe doctor``: from facts to one reason. Pure.

Owns the reasons with their remedies, and the order in which they are tried. Must not know how a
fact was read. A reason that is named holds; what could not be read, and might have led to another
one, is named with it.

On x86, firmware switches KVM off by a register that the kernel reads at boot. The kernel clears the
CPU's flag then: svm since Linux 7deda2ce5b33 ("x86/cpu: Clear SVM feature if disabled by BIOS")
(v6.7). Older kernels leave svm there, and only kvm_amd says that it refuses. So a message of the
kernel counts before a flag.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from probes.host.emulation import Finding
from probes.host.kvm_support import KernelMessage, KvmSupport, module_name

ERROR_LEVEL = 3
"""KERN_ERR: messages of this level and below are errors."""
MAX_QUOTED = 120
"""The most characters that are quoted of a message or line."""


class Absence(StrEnum):
    """Why a node has no KVM."""

    KERNEL_WITHOUT_KVM = "kernel_without_kvm"
    """The kernel is built without KVM."""
    FIRMWARE = "firmware"
    """Firmware has switched the CPU's extension off."""
    NOT_NESTED = "not_nested"
    """The node is a VM, and its hypervisor does not offer the extension."""
    NO_EXTENSION = "no_extension"
    """The CPU shows no extension; firmware may have switched it off."""
    FORBIDDEN = "forbidden"
    """The kernel's command line or modprobe.d keeps KVM from being loaded."""
    NOT_INSTALLED = "not_installed"
    """The running kernel's modules have no KVM."""
    NOT_LOADED = "not_loaded"
    """Nothing has loaded the module."""
    MODULE_FAILED = "module_failed"
    """The module is there and has not registered the device."""
    NOT_IN_EL2 = "not_in_el2"
    """An arm64 kernel was not started in the CPU's hypervisor mode."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsenceFound:
    """Why a node has no KVM."""

    reason: Absence
    sentence: str
    """What was found and, where that may matter, what could not be read. One line."""
    remedy: str
    """What a person can do, one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """How a maker's CPUs virtualize."""

    flag: str
    """Its flag in /proc/cpuinfo."""
    module: str
    """The vendor module that needs it."""
    option: str
    """The option of the kernel's configuration that builds the module."""
    setting: str
    """Its name in firmware."""


VMX = Extension(flag="vmx", module="kvm_intel", option="CONFIG_KVM_INTEL", setting="Intel VT-x")
SVM = Extension(flag="svm", module="kvm_amd", option="CONFIG_KVM_AMD", setting="AMD-V (SVM)")
VENDORS = {
    "GenuineIntel": VMX,
    "CentaurHauls": VMX,
    "Shanghai": VMX,
    "AuthenticAMD": SVM,
    "HygonGenuine": SVM,
}
"""Extension by ``vendor_id``."""

_BY_FIRMWARE = re.compile(
    r"(?:kvm|VMX|SVM)\b.*(?:disabled by bios|\(by BIOS\))|disable TXT in the BIOS", re.IGNORECASE
)
"""arch/x86/kernel/cpu/feat_ctl.c, amd.c and hygon.c; arch/x86/kvm/x86.c, vmx/vmx.c, svm/svm.c."""
_OUTSIDE_EL2 = re.compile(r"HYP mode not available|CPU.* started at EL1")
"""arch/arm64/kvm/arm.c and arch/arm64/kernel/smp.c."""
_AT_START = re.compile(r"kvm(?:_intel|_amd)?(?: \[1\])?: ")
"""How messages begin that KVM writes when it starts. Those of a VM name its process."""
_X86 = frozenset({"x86_64", "i686"})


def absence_of(facts: KvmSupport) -> AbsenceFound:
    """Return why a node has no KVM: the first reason that holds."""
    if facts.machine in _X86:
        return _on_x86(facts)
    rules: tuple[Callable[[KvmSupport], AbsenceFound | None], ...] = (_without_kvm,)
    if facts.machine == "aarch64":
        rules = (_without_kvm, _switched_off_on_arm, _outside_el2)
    found = (rule(facts) for rule in rules)
    return next(
        filter(None, found), _unexplained(facts, f"hvprobe knows no reason on {facts.machine}")
    )


def _on_x86(facts: KvmSupport) -> AbsenceFound:
    extension = extension_of(facts)
    found = _without_kvm(facts, extension) or _by_firmware(facts, extension)
    if found is not None:
        return found
    cpu = facts.cpu.value
    if cpu is None:
        return _unexplained(facts, facts.cpu.text)
    if extension is None or extension.flag not in cpu.flags:
        return _without_flag(facts, extension, is_vm="hypervisor" in cpu.flags)
    return _with_flag(facts, extension)


def extension_of(facts: KvmSupport) -> Extension | None:
    """Return the extension of the node's CPU; None: it is unknown, or the CPU has none."""
    cpu = facts.cpu.value
    if cpu is None:
        return None
    shown = (extension for extension in (VMX, SVM) if extension.flag in cpu.flags)
    return next(shown, VENDORS.get(cpu.vendor.strip()))


def _without_kvm(facts: KvmSupport, extension: Extension | None = None) -> AbsenceFound | None:
    options = facts.options.value
    if options is None:
        return None
    wanted = ["CONFIG_KVM", *([extension.option] if extension else [])]
    off = [option for option in wanted if not options.get(option, False)]
    if not off:
        return None
    return AbsenceFound(
        reason=Absence.KERNEL_WITHOUT_KVM,
        sentence=f"the kernel {facts.release} is built without {off[0]}",
        remedy=f"boot a kernel that is built with {' and '.join(wanted)}",
    )


def _by_firmware(facts: KvmSupport, extension: Extension | None) -> AbsenceFound | None:
    message = _message(facts, lambda message: bool(_BY_FIRMWARE.search(message.text)))
    if message is None:
        return None
    setting = extension.setting if extension else f"{VMX.setting} or {SVM.setting}"
    return AbsenceFound(
        reason=Absence.FIRMWARE,
        sentence=f"firmware has switched {setting} off; the kernel says {_quoted(message.text)}",
        remedy=f"enable {setting} in the firmware (BIOS, UEFI) and restart the node",
    )


def _without_flag(facts: KvmSupport, extension: Extension | None, *, is_vm: bool) -> AbsenceFound:
    """Say why the CPU does not show the extension. The kernel's log does not say that."""
    flag = extension.flag if extension else f"{VMX.flag} or {SVM.flag}"
    setting = extension.setting if extension else f"{VMX.setting} or {SVM.setting}"
    if is_vm:
        return AbsenceFound(
            reason=Absence.NOT_NESTED,
            sentence=f"the node is a VM, and its hypervisor offers no nested virtualization: "
            f"/proc/cpuinfo has the flag hypervisor, not {flag}",
            remedy="enable nested virtualization on the outer hypervisor and give this VM a CPU "
            f"model with {flag}, or use a node on hardware",
        )
    log = facts.log.value
    if log is None:
        why_unsure = f"; {facts.log.text}"
    elif not log.complete:
        why_unsure = "; the beginning of the kernel's log, which would say so, is no longer there"
    else:
        why_unsure = ""
    return AbsenceFound(
        reason=Absence.NO_EXTENSION,
        sentence=f"/proc/cpuinfo has no flag {flag}: firmware has switched {setting} off, or the "
        f"CPU has none{why_unsure}",
        remedy=f"enable {setting} in the firmware (BIOS, UEFI) and restart the node",
    )


def _with_flag(facts: KvmSupport, extension: Extension) -> AbsenceFound:
    """Say why the module of a CPU that shows the extension does not provide KVM."""
    module = extension.module
    if facts.loaded.value is not None and module in facts.loaded.value:
        return AbsenceFound(
            reason=Absence.MODULE_FAILED,
            sentence=f"{module} is there, but has not registered the device{_error(facts)}",
            remedy=f"look in the kernel's log for what {module} says: dmesg | grep -i kvm",
        )
    found = _forbidden_by_kernel(facts, module) or _forbidden_by_modprobe(facts, module)
    if found is not None:
        return found
    installed = facts.installed.value
    if installed is not None and module not in installed:
        return AbsenceFound(
            reason=Absence.NOT_INSTALLED,
            sentence=f"the kernel {facts.release} has no module {module} on this node",
            remedy=f"install the package that has {module} for this kernel, or restart the node "
            "if the kernel was upgraded",
        )
    if facts.loaded.value is None:
        return _unexplained(facts, facts.loaded.text)
    unread = _unread((facts.command_line, facts.rules, facts.installed))
    return AbsenceFound(
        reason=Absence.NOT_LOADED,
        sentence=f"{module} is not loaded{_error(facts)}{unread}",
        remedy=f"modprobe {module}, and name it in /etc/modules-load.d/kvm.conf",
    )


def _forbidden_by_kernel(facts: KvmSupport, module: str) -> AbsenceFound | None:
    # The kernel refuses to load the first; modprobe does not load the second by itself.
    blocking = {"module_blacklist": {module, "kvm"}, "modprobe.blacklist": {module}}
    for word in facts.command_line.value or ():
        name, _, value = word.partition("=")
        modules = {module_name(item) for item in value.strip('"').split(",")}
        if modules & blocking.get(name, set()):
            return AbsenceFound(
                reason=Absence.FORBIDDEN,
                sentence=f"the kernel's command line keeps {module} from being loaded: "
                f"{_quoted(word)}",
                remedy=f"remove {name} from the kernel's command line and restart the node",
            )
    return None


def _forbidden_by_modprobe(facts: KvmSupport, module: str) -> AbsenceFound | None:
    # A dependency is loaded even if it is on the blacklist.
    for rule in facts.rules.value or ():
        if rule.module == module or (rule.module == "kvm" and rule.replaces):
            return AbsenceFound(
                reason=Absence.FORBIDDEN,
                sentence=f"{rule.file} keeps {module} from being loaded: {_quoted(rule.line)}",
                remedy=f"remove that line, then modprobe {module}",
            )
    return None


def _switched_off_on_arm(facts: KvmSupport) -> AbsenceFound | None:
    modes = [word for word in facts.command_line.value or () if word.startswith("kvm-arm.mode=")]
    if modes[-1:] != ["kvm-arm.mode=none"]:
        return None
    return AbsenceFound(
        reason=Absence.FORBIDDEN,
        sentence="the kernel's command line switches KVM off: `kvm-arm.mode=none`",
        remedy="remove kvm-arm.mode=none from the kernel's command line and restart the node",
    )


def _outside_el2(facts: KvmSupport) -> AbsenceFound | None:
    message = _message(facts, lambda message: bool(_OUTSIDE_EL2.search(message.text)))
    if message is None:
        return None
    return AbsenceFound(
        reason=Absence.NOT_IN_EL2,
        sentence="the kernel was not started in EL2, the CPU's hypervisor mode; it says "
        f"{_quoted(message.text)}",
        remedy="let the firmware start the kernel in EL2, or enable nested virtualization on the "
        "outer hypervisor if the node is a VM",
    )


def _unexplained(facts: KvmSupport, why: str) -> AbsenceFound:
    unread = [fact for fact in (facts.options, facts.log) if fact.text != why]
    return AbsenceFound(
        reason=Absence.UNKNOWN,
        sentence=f"it is unknown why: {why}{_error(facts)}{_unread(unread)}",
        remedy="look in the node's kernel log for messages of KVM: dmesg | grep -i kvm",
    )


def _unread(findings: Iterable[Finding[object]]) -> str:
    """Return what could not be read of these, as the end of a sentence."""
    return "".join(f"; {finding.text}" for finding in findings if finding.value is None)


def _error(facts: KvmSupport) -> str:
    """Return the last error with which KVM did not start, as the end of a sentence."""
    message = _message(
        facts,
        lambda message: message.level <= ERROR_LEVEL and bool(_AT_START.match(message.text)),
    )
    return f"; the kernel says {_quoted(message.text)}" if message else ""


def _message(facts: KvmSupport, is_meant: Callable[[KernelMessage], bool]) -> KernelMessage | None:
    """Return the last message in the kernel's log that is meant."""
    log = facts.log.value
    return next(filter(is_meant, reversed(log.messages)), None) if log else None


def _quoted(text: str) -> str:
    return f"`{text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + '…'}`"
