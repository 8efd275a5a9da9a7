# SPDX-License-Identifier: Apache-2.0
"""The formats of what explains that a node has no KVM."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as some

from probes.host.kvm_support import (
    MAX_MESSAGES,
    KernelLog,
    KernelMessage,
    ModuleRule,
    parse_cpu,
    parse_kmsg,
    parse_modules,
    parse_options,
    parse_rules,
    parse_syslog,
)

CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\nvmx flags\t: ept\n\n"
    "processor\t: 1\nvendor_id\t: Other\nflags\t\t: fpu\n"
)


def test_cpu() -> None:
    """The first CPU counts. Other architectures have no flags."""
    cpu = parse_cpu(CPUINFO)
    assert cpu is not None
    assert (cpu.vendor, cpu.flags) == ("GenuineIntel", frozenset({"fpu", "vmx"}))
    assert parse_cpu("processor\t: 0\nFeatures\t: fp asimd\n") is None
    assert parse_cpu("") is None


@pytest.mark.parametrize(
    ("config", "on"),
    [
        ("CONFIG_KVM=m\nCONFIG_KVM_INTEL=m\n# CONFIG_KVM_AMD is not set\n", "KVM KVM_INTEL"),
        ("CONFIG_KVM=y\nCONFIG_KVM_INTEL=y\nCONFIG_KVM_AMD=y\n", "KVM KVM_INTEL KVM_AMD"),
        ("# CONFIG_KVM is not set\nCONFIG_SMP=y\n", ""),
        # What KVM needs is off, so nothing is said about it.
        ("CONFIG_SMP=y\n", ""),
        ("CONFIG_KVM=n\nCONFIG_SMP=y\nCONFIG_KVM_INTEL=ym\n", ""),
    ],
)
def test_options(config: str, on: str) -> None:
    """An option is on if it is built in or a module."""
    options = parse_options(config)
    assert options is not None
    assert {name.removeprefix("CONFIG_") for name, is_on in options.items() if is_on} == {
        *on.split()
    }


@pytest.mark.parametrize("text", ["", "\0\0\0", "hello\n", "CONFIG_\n", "#\n"])
def test_no_configuration(text: str) -> None:
    """Text without any option says nothing about KVM."""
    assert parse_options(text) is None


@pytest.mark.parametrize(
    ("listing", "modules"),
    [
        (
            (
                "kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko\n"
                "kernel/arch/x86/kvm/kvm-intel.ko: kernel/arch/x86/kvm/kvm.ko\n"
                "kernel/fs/ext4/ext4.ko:\n"
            ),
            {"kvm", "kvm_intel"},
        ),
        ("kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n", {"kvm_amd"}),
        ("kernel/arch/x86/kvm/kvm.ko\n", {"kvm"}),
        ("kernel/fs/ext4/ext4.ko:\n", set()),
        ("kernel/a/kvmgt.ko:\n", set()),
        ("", set()),
        ("\n", set()),
        ("hello\n", None),
    ],
)
def test_modules(listing: str, modules: set[str] | None) -> None:
    """Names are as in sysfs, from modules.dep and modules.builtin, compressed or not."""
    assert parse_modules(listing) == modules


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("blacklist kvm-intel\n", [("kvm_intel", "blacklist kvm-intel", False)]),
        ("  blacklist\tkvm_amd # no\n", [("kvm_amd", "blacklist kvm_amd # no", False)]),
        (
            "install kvm_intel /bin/false\ninstall kvm \\\n  /bin/true\n",
            [
                ("kvm_intel", "install kvm_intel /bin/false", True),
                ("kvm", "install kvm /bin/true", True),
            ],
        ),
        ("install kvm_intel modprobe --ignore-install kvm_intel nested=1\n", []),
        ("options kvm_intel nested=1\nblacklist nouveau\n#blacklist kvm_intel\n", []),
        ("blacklist\ninstall\n\n\\\n", []),
        ("blacklist kvmgt\n", []),
    ],
)
def test_rules(text: str, found: list[tuple[str, str, bool]]) -> None:
    """Lines that keep KVM from being loaded are found, on one line or several."""
    assert [*parse_rules(text, "/etc/modprobe.d/a.conf")] == [
        ModuleRule(module=module, line=line, file="/etc/modprobe.d/a.conf", replaces=replaces)
        for module, line, replaces in found
    ]


KMSG = (
    "5,0,0,-;Linux version 6.12.0\n"
    "3,339,5140900,-;x86/cpu: VMX (outside TXT) disabled by BIOS\n"
    "6,340,5140901,-;x86/cpu: SGX disabled by BIOS.\n"
    " SUBSYSTEM=kvm\n"
    "3,341,7,c;kvm_amd: SVM not supported by CPU 0\n"
    "6,342,8,-;kvm [1]: HYP mode not available\n"
    "6,343,8,-,caller=T1;CPU: All CPU(s) started at EL1\n"
)
ABOUT_KVM = [
    (3, "x86/cpu: VMX (outside TXT) disabled by BIOS"),
    (3, "kvm_amd: SVM not supported by CPU 0"),
    (6, "kvm [1]: HYP mode not available"),
    (6, "CPU: All CPU(s) started at EL1"),
]


def shown(log: KernelLog) -> list[tuple[int, str]]:
    return [(message.level, message.text) for message in log.messages]


def test_kmsg() -> None:
    """Messages about KVM are kept in order. The log is complete if it begins with number 0."""
    log = parse_kmsg(KMSG, read_all=True)
    assert shown(log) == ABOUT_KVM
    assert log.complete
    assert not parse_kmsg(KMSG, read_all=False).complete
    later = parse_kmsg(KMSG.partition("\n")[2], read_all=True)
    assert (shown(later), later.complete) == (ABOUT_KVM, False)
    assert parse_kmsg("", read_all=True) == KernelLog(messages=(), complete=False)


def test_syslog() -> None:
    """syslog(2) shows the same messages. It does not show where the log begins."""
    lines = "".join(f"<{level}>[    1.000000] {text}\n" for level, text in ABOUT_KVM)
    assert shown(parse_syslog(lines + "<6>no time\nkvm: no priority\n")) == ABOUT_KVM
    assert not parse_syslog(lines).complete
    assert shown(parse_syslog("<3>kvm: disabled by bios\n")) == [(3, "kvm: disabled by bios")]


@pytest.mark.parametrize("parse", [lambda text: parse_kmsg(text, read_all=True), parse_syslog])
def test_programs_cannot_write_for_the_kernel(parse: Callable[[str], KernelLog]) -> None:
    """What a program wrote to the log has its facility, and is left out."""
    forged = "11,1,1,-;kvm: disabled by bios\n<11>[    1.0] kvm: disabled by bios\n"
    assert shown(parse(forged)) == []


def test_many_messages_are_bounded() -> None:
    """What a VM makes KVM write fills no memory, and does not hide what KVM said at boot."""
    many = "".join(f"4,{number},0,-;kvm: message {number}\n" for number in range(1000))
    log = parse_kmsg(many, read_all=True)
    assert len(log.messages) == MAX_MESSAGES
    assert log.messages[0] == KernelMessage(level=4, text="kvm: message 0")
    assert log.messages[-1] == KernelMessage(level=4, text="kvm: message 999")


def test_a_message_that_repeats_itself_is_one() -> None:
    """It has its last place, because the newest message comes last."""
    texts = ["kvm: a", "kvm: b", *["kvm: c"] * 1000, "kvm: a"]
    log = parse_kmsg("".join(f"3,0,0,-;{text}\n" for text in texts), read_all=True)
    assert shown(log) == [(3, "kvm: b"), (3, "kvm: c"), (3, "kvm: a")]


def test_a_message_is_one_printable_line() -> None:
    """No control character of a message reaches a terminal."""
    log = parse_kmsg("4,0,0,-;kvm: a\x1b[31mb\x00\n", read_all=True)
    assert shown(log) == [(4, "kvm: a[31mb")]


@given(some.text(alphabet=some.sampled_from("kvm_-.o:,;<> \\\n#=CONFIGKVMblacklistinstall0123[]")))
def test_anything(text: str) -> None:
    """No parser raises, whatever it is given."""
    parse_cpu(text)
    parse_options(text)
    parse_modules(text)
    parse_kmsg(text, read_all=True)
    parse_syslog(text)
    assert all(rule.file == "file" for rule in parse_rules(text, "file"))
