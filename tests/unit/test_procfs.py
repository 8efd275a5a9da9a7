# SPDX-License-Identifier: Apache-2.0
"""/proc text → values: the kernel's text is read correctly, and a process's text does no harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.hypervisors import HypervisorType
from probes.host.process import AcceleratorFds, HeldFds, QemuCommandLine
from probes.host.procfs import (
    MAX_ARGUMENTS,
    MalformedProcError,
    classify_fds,
    is_qemu_name,
    looks_like_vmm,
    parse_command_line,
    parse_ioctl,
    parse_stat,
    qemu_architecture,
    split_arguments,
)
from tests.support.facts import captured, kvm_fds

KVM, MSHV = HypervisorType.KVM, HypervisorType.MSHV

NUMBERS = (
    "{state} 1 6816 20573 0 -1 138412416 4475 0 0 0 6 394 0 0 20 0 {threads} 0 259531 431124480 "
    "9941 18446744073709551615 94856571539456 94856577399893 140725106222848 0 0 0 268444224 4100 "
    "16963 0 0 0 17 0 0 0 0 {guest} 0 94856580511992 94856585716144"
)


def stat_line(comm: str, *, state: str = "S", threads: int = 5, guest: int = 1) -> str:
    return f"8110 ({comm}) {NUMBERS.format(state=state, threads=threads, guest=guest)}\n"


# stat


def test_captured_stat() -> None:
    """A real QEMU's line yields name, state, CPU time, threads, start and guest time."""
    stat = parse_stat(captured("kvm_two_vcpus").stat)
    assert stat.comm == "qemu-system-x86"
    assert stat.state == "S"
    assert stat.cpu_ticks == 6 + 394
    assert stat.threads == 5
    assert stat.start_ticks == 259531
    assert stat.guest_ticks == 1
    assert stat.parent_tgid == 1
    assert not stat.kernel_thread
    assert not stat.ended


def test_kernel_threads_are_known_by_their_flags() -> None:
    """Kernel threads are known by a flag that no process can set."""
    line = stat_line("kvm").replace(" 138412416 ", " 2129984 ")
    assert parse_stat(line).kernel_thread
    others = stat_line("kvm").replace(" 138412416 ", f" {0xFFFF_FFFF & ~0x0020_0000} ")
    assert not parse_stat(others).kernel_thread


HOSTILE_NAMES = {
    "looks like the end and a state": "a) R 1 (b",
    "looks like a whole line": "a) Z 1 1 1 1 1 1 1 (b",
    "only brackets": ")(",
    "closing at the end": "x)",
    "newlines": "a\nb\n) S 1",
    "empty": "",
    "spaces and tabs": " \t ",
    "no text encoding": b"\xff\xfe\xc3".decode(errors="replace"),
    "NUL": "a\0b",
    "unicode digits": "١٢٣",
}


@pytest.mark.parametrize("comm", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_name_cannot_shift_the_fields(comm: str) -> None:
    """No name of a process shifts the numbers that follow it."""
    stat = parse_stat(stat_line(comm))
    assert (stat.comm, stat.state, stat.start_ticks, stat.guest_ticks) == (comm, "S", 259531, 1)


@given(st.text(max_size=15))
def test_any_name_is_given_back(comm: str) -> None:
    """Any name is returned unchanged, with the same values after it."""
    stat = parse_stat(stat_line(comm))
    assert (stat.comm, stat.threads) == (comm, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "8110",
        "8110 (qemu",
        "8110 qemu) S 1",
        "(qemu) S 1",
        ")8110(",
        "8110 (qemu) S 1 2 3",
        stat_line("qemu").replace(" 259531 ", " soon "),
        stat_line("qemu").rsplit(" ", 6)[0],
        "8110 (" + "x" * 100_000,
    ],
)
def test_short_or_garbled_stat_is_malformed(text: str) -> None:
    """A malformed stat line raises MalformedProcError with a message of one line."""
    with pytest.raises(MalformedProcError) as caught:
        parse_stat(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.text())
def test_stat_parser_raises_nothing_else(text: str) -> None:
    """Any text is either a stat line or malformed."""
    try:
        parse_stat(text)
    except MalformedProcError:
        return
    pytest.fail("no text of this kind is a stat line")


@pytest.mark.parametrize(
    ("state", "threads", "ended"),
    [
        ("R", 1, False),
        ("S", 4, False),
        ("Z", 1, True),
        ("Z", 2, False),
        ("X", 0, True),
        ("X", 1, True),
        ("D", 0, False),
    ],
)
def test_a_process_has_ended_with_its_last_thread(state: str, threads: int, *, ended: bool) -> None:
    """A process with a zombie main thread lives while other threads run the guest."""
    assert parse_stat(stat_line("qemu", state=state, threads=threads)).ended is ended


# syscall

KVM_RUN = 0xAE80
INSIDE_X86 = "16 0x9 0xae80 0x0 0x0 0x564584a9b290 0xff 0x7f7197dfd530 0x7f719939ed6b\n"
INSIDE_ARM = "29 0xc 0xae80 0x0 0x0 0xffff8a7fe6c0 0xffff8a7fde98 0xffff8a7fdd70 0xffff8c1d3b1c\n"


@pytest.mark.parametrize(
    ("text", "machine", "found"),
    [
        (INSIDE_X86, "x86_64", (9, KVM_RUN)),
        (INSIDE_ARM, "aarch64", (12, KVM_RUN)),
        (INSIDE_ARM, "riscv64", (12, KVM_RUN)),
        (INSIDE_ARM, "loongarch64", (12, KVM_RUN)),
        (INSIDE_ARM.replace("29 ", "54 ", 1), "s390x", (12, KVM_RUN)),
        (INSIDE_ARM.replace("29 ", "54 ", 1), "ppc64le", (12, KVM_RUN)),
        ("16 0x5 0x8100b800 0x7f00 0x0 0x0 0x0 0x7ff0 0x7ff8\n", "x86_64", (5, 0x8100B800)),
        # libc sign-extends an int: the kernel looks at the lower half only.
        ("16 0x9 0xffffffff8100b800 0 0x0 0x0 0x0 0x0 0x0\n", "x86_64", (9, 0x8100B800)),
        (INSIDE_X86, "aarch64", None),
        (INSIDE_ARM, "x86_64", None),
        (INSIDE_X86, "machine of the future", None),
        ("running\n", "x86_64", None),
        ("-1 0x7ffd89dcccc0 0x7fbbe5968366\n", "x86_64", None),
        ("-1 0x0 0x0\n", "x86_64", None),
        ("271 0x556eae0729a0 0x4 0x7ffd89dcccc0 0x0 0x8 0x0 0x7ffd 0x7fbb\n", "x86_64", None),
        ("", "x86_64", None),
        ("\n", "x86_64", None),
        ("16 0x9\n", "x86_64", None),
    ],
)
def test_ioctl_that_a_thread_sleeps_in(
    text: str, machine: str, found: tuple[int, int] | None
) -> None:
    """Only a line with this architecture's number of ioctl(2) yields a descriptor and a request."""
    assert parse_ioctl(text, machine=machine) == found


def test_descriptor_is_the_lower_half_of_its_register() -> None:
    """ioctl(2) takes an unsigned int (fs/ioctl.c).

    /proc also shows the upper half of the register, which means nothing.
    """
    line = "16 0xdeadbeef00000009 0xae80 0x0 0x0 0x0 0x0 0x7ffd 0x7fbb\n"
    assert parse_ioctl(line, machine="x86_64") == (9, KVM_RUN)


@pytest.mark.parametrize("text", ["a b c d", "16 nine 0xae80 0x0", "16 0x9 run 0x0"])
def test_garbled_syscall_is_malformed(text: str) -> None:
    """Words in place of the kernel's numbers raise MalformedProcError."""
    with pytest.raises(MalformedProcError):
        parse_ioctl(text, machine="x86_64")


# fd


def test_captured_descriptors() -> None:
    """A real QEMU's table holds one device, one VM and two vCPUs, and nothing else counts."""
    targets = [(int(fd), target) for fd, target in captured("kvm_two_vcpus").fd.items()]
    assert classify_fds(targets, complete=True) == kvm_fds(9, 11)


@pytest.mark.parametrize(
    ("target", "kind", "field"),
    [
        ("/dev/kvm", KVM, "devices"),
        ("/dev/mshv", MSHV, "devices"),
        ("anon_inode:kvm-vm", KVM, "vms"),
        ("anon_inode:[kvm-vm]", KVM, "vms"),
        ("anon_inode:kvm-vcpu", KVM, "vcpus"),
        ("anon_inode:kvm-vcpu:0", KVM, "vcpus"),
        ("anon_inode:kvm-vcpu:4095", KVM, "vcpus"),
        ("anon_inode:[kvm-vcpu]", KVM, "vcpus"),
        ("anon_inode:[kvm-vcpu:7]", KVM, "vcpus"),
        ("anon_inode:kvm-vcpu-stats:0", KVM, "statistics"),
        ("anon_inode:[kvm-vcpu-stats:0]", KVM, "statistics"),
        ("anon_inode:mshv_partition", MSHV, "vms"),
        ("anon_inode:[mshv_partition]", MSHV, "vms"),
        ("anon_inode:mshv_vp", MSHV, "vcpus"),
        ("anon_inode:[mshv_vp]", MSHV, "vcpus"),
    ],
)
def test_accelerators_descriptors_are_known_by_their_target(
    target: str, kind: HypervisorType, field: str
) -> None:
    """Every kernel's spelling of these files is known, with or without an index and brackets."""
    found = classify_fds([(1, "/dev/null"), (7, target)], complete=True)
    assert found == AcceleratorFds(held={kind: HeldFds(**{field: frozenset({7})})}, complete=True)
    assert found.any
    assert [hypervisor for hypervisor in (KVM, MSHV) if found.of(hypervisor).any] == [kind]


def test_unlinked_device_is_still_the_device() -> None:
    """A descriptor of a removed /dev entry still counts as the accelerator's.

    udev or a container runtime may have made the entry again.
    """
    found = classify_fds([(3, "/dev/kvm (deleted)"), (4, "/dev/mshv (deleted)")], complete=True)
    assert (found.of(KVM).devices, found.of(MSHV).devices) == (frozenset({3}), frozenset({4}))


@pytest.mark.parametrize(
    "target",
    [
        # A file of that name in the working directory: /proc shows the absolute path.
        "/home/guest/anon_inode:kvm-vcpu:0",
        "/anon_inode:kvm-vm",
        "/tmp/dev/kvm",
        "/dev/kvm/",
        "/dev/kvmfr0",
        "/dev/vhost-net",
        "anon_inode:kvm",
        "anon_inode:kvm-gmem",
        "anon_inode:[eventfd]",
        "anon_inode:",
        "pipe:[95313]",
        "",
        "anon_inode:\n:kvm-vm",
    ],
)
def test_other_files_are_no_accelerators(target: str) -> None:
    """A file that only resembles an accelerator's does not count as one."""
    assert classify_fds([(3, target)], complete=True) == AcceleratorFds(complete=True)


@given(targets=st.lists(st.tuples(st.integers(), st.text())), complete=st.booleans())
def test_wholeness_is_passed_on(targets: list[tuple[int, str]], *, complete: bool) -> None:
    """The table is as complete as the reader says, whatever its links are."""
    assert classify_fds(targets, complete=complete).complete is complete


# names


@pytest.mark.parametrize(
    ("name", "qemu"),
    [
        ("qemu-system-x86_64", True),
        ("qemu-system-x86", True),
        ("qemu-kvm", True),
        ("qemu-img", False),
        ("qemu-nbd", False),
        ("qemu-aarch64", False),
        ("virt-qemu-run", False),
        ("kvm", True),
        ("qemu", True),
        ("qem", False),
        ("qemu-", False),
        ("kvm-nx-lpage-re", False),
        ("kvm_pit", False),
        ("", False),
        ("my-qemu-kvm", False),
    ],
)
def test_system_emulators_by_name(name: str, *, qemu: bool) -> None:
    """QEMU's system emulators are VMMs; the tools that come with them are not."""
    assert is_qemu_name(name) is qemu


BY_ARGUMENTS = {
    "-accel": ("x", ["x", "-display", "none", "-accel", "tcg"]),
    "-accel with options": ("x", ["x", "-accel", "tcg,thread=multi"]),
    "--accel": ("x", ["x", "--accel", "accel=kvm"]),
    "-machine": ("x", ["x", "-machine", "q35,accel=kvm:tcg"]),
    "-M": ("x", ["x", "-M", "virt,accel=tcg"]),
    "-machine none": ("x", ["x", "-machine", "none"]),
    "-machine none, by its key": ("x", ["x", "-S", "-machine", "type=none"]),
    "-enable-kvm": ("x", ["x", "-m", "64", "-enable-kvm"]),
    "a guest of KubeVirt": ("x", ["x", "-name", "guest=default_vm-1.a,debug-threads=on"]),
    "process=": ("y", ["x", "-name", "guest=a_b,process=y", "-S"]),
    "every accelerator": ("x", ["x", "-accel", "qtest"]),
    "QEMU's name as a guest's": ("x", ["x", "-name", "qemu-kvm", "-accel", "tcg"]),
    "from memory": ("memfd:vm", ["vm", "-accel", "tcg"]),
    "by the loader": (
        "ld-linux-x86-64.so.2",
        ["/lib64/ld-linux-x86-64.so.2", "/usr/bin/qemu-system-x86_64", "-accel", "tcg"],
    ),
    "by the loader, with options": (
        "ld.so",
        ["ld.so", "--library-path", "/lib", "/usr/bin/vm", "-accel", "tcg"],
    ),
    "by musl's loader": ("ld-musl-x86_64.so.1", ["ld", "--argv0", "a", "b", "-enable-kvm"]),
    "no program known": (None, ["x", "-accel", "kvm"]),
    "a trailing NUL": ("x", ["x", "-enable-kvm", ""]),
}
NO_VMM = {
    "nothing": (None, []),
    "no arguments": ("x", ["x"]),
    "qemu-nbd": ("qemu-nbd", ["qemu-nbd", "--connect=/dev/nbd0", "-f", "raw", "disk"]),
    "qemu-img": ("qemu-img", ["qemu-img", "convert", "-O", "qcow2", "a", "b"]),
    "qemu-ga": ("qemu-ga", ["qemu-ga", "-m", "virtio-serial", "-p", "/dev/port"]),
    "qemu-storage-daemon": (
        "qemu-storage-daemon",
        ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=a", "--export", "nbd"],
    ),
    "qemu-pr-helper": ("qemu-pr-helper", ["qemu-pr-helper", "-k", "/run/socket"]),
    "virt-launcher": (
        "virt-launcher",
        ["virt-launcher", "--name", "vm", "--namespace", "a_b", "--uid", "1"],
    ),
    "a shell's text": ("bash", ["bash", "-c", "qemu-system-x86_64 -accel kvm"]),
    "a shell's arguments": ("sh", ["sh", "-c", "exec $@", "sh", "-accel", "kvm"]),
    "grep": ("grep", ["grep", "-r", "--", "-enable-kvm", "."]),
    "grep -e": ("grep", ["grep", "-e", "-enable-kvm", "file"]),
    "sudo": ("sudo", ["sudo", "qemu-system-x86_64", "-accel", "kvm"]),
    "sudo -u": ("sudo", ["sudo", "-u", "a", "qemu-system-x86_64", "-accel", "kvm"]),
    "timeout": ("timeout", ["timeout", "60", "/usr/bin/qemu-system-x86_64", "-accel", "kvm"]),
    "one that starts it": (
        "systemd-run",
        ["systemd-run", "--scope", "/usr/bin/qemu-system-x86_64", "-accel", "kvm"],
    ),
    "strace": ("strace", ["strace", "-ff", "qemu-system-x86_64", "-enable-kvm"]),
    "-accel of something else": ("x", ["x", "-accel", "gpu"]),
    "-machine of something else": ("x", ["x", "-machine", "laptop"]),
    "-name of something else": ("x", ["x", "-name", "guest=me"]),
    "name without its key": ("x", ["x", "-name", "a_b"]),
    "the program's name is no option": ("x", ["-enable-kvm"]),
    "names that only begin so": ("qemux", ["kvmtool", "run"]),
}


@pytest.mark.parametrize(("program", "arguments"), BY_ARGUMENTS.values(), ids=BY_ARGUMENTS.keys())
def test_vmms_under_any_name(program: str | None, arguments: list[str]) -> None:
    """Options that only QEMU has make a program of any name a VMM."""
    assert looks_like_vmm("x", program, arguments)


@pytest.mark.parametrize("name", "kvm tcg mshv xen hvf whpx nvmm qtest".split())
def test_every_accelerator_makes_a_vmm(name: str) -> None:
    """Every name that ``-accel help`` of any QEMU prints makes a VMM; a part of a name does not."""
    assert looks_like_vmm("x", "x", ["x", "-accel", name])
    assert looks_like_vmm("x", "x", ["x", "-machine", f"q35,accel={name}"])
    assert not looks_like_vmm("x", "x", ["x", "-accel", name[1:]])


@pytest.mark.parametrize(("program", "arguments"), NO_VMM.values(), ids=NO_VMM.keys())
def test_programs_that_are_no_vmms(program: str | None, arguments: list[str]) -> None:
    """Neither QEMU's tools nor programs that mention QEMU are VMMs."""
    assert not looks_like_vmm((program or "x")[:15], program, arguments)


@pytest.mark.parametrize("name", ["qemu-system-x86_64", "qemu-kvm", "qemu", "kvm"])
def test_either_name_makes_a_vmm(name: str) -> None:
    """The name of the main thread or of the executable file makes a VMM."""
    assert looks_like_vmm(name[:15], "vm", [])
    assert looks_like_vmm("vm", name, [])
    assert looks_like_vmm("vm", name, ["grep", "--", "text"])


@given(st.text(), st.none() | st.text(), st.lists(st.text()))
def test_no_arguments_are_an_error(comm: str, program: str | None, arguments: list[str]) -> None:
    """No list of arguments raises an exception."""
    assert looks_like_vmm(comm, program, arguments) in (True, False)


def test_arguments_are_bounded() -> None:
    """Arguments beyond the bound are not split."""
    raw = b"a\0" * (MAX_ARGUMENTS + 5)
    assert split_arguments(raw) == ["a"] * MAX_ARGUMENTS
    assert split_arguments(b"a\0b\0") == ["a", "b", ""]
    assert split_arguments(b"") == [""]


@pytest.mark.parametrize(
    ("program", "architecture"),
    [
        ("qemu-system-x86_64", "x86_64"),
        ("qemu-system-aarch64", "aarch64"),
        ("qemu-system-s390x", "s390x"),
        ("qemu-system-riscv64", "riscv64"),
        ("qemu-kvm", None),
        ("firecracker", None),
        ("", None),
        (None, None),
        ("qemu-system-", None),
        ("qemu-system- ", None),
    ],
)
def test_guest_architecture_by_program(program: str | None, architecture: str | None) -> None:
    """The program's name contains the guest's architecture; without one, the node's applies."""
    assert qemu_architecture(program) == architecture


@given(st.text())
def test_any_program_name_has_an_answer(rest: str) -> None:
    """No name of a program raises an exception."""
    qemu_architecture("qemu-system-" + rest)


# cmdline


def cmdline(*words: str) -> bytes:
    return b"".join(word.encode() + b"\0" for word in words)


def line(
    name: str | None = None, accelerators: tuple[str, ...] = (), machine: str | None = None
) -> QemuCommandLine:
    return QemuCommandLine(guest_name=name, accelerators=accelerators, machine=machine)


Q = "qemu-system-x86_64"
COMMAND_LINES = {
    "libvirt's": (
        cmdline(
            *(Q, "-name", "guest=default_alpha,debug-threads=on", "-S"),
            *("-machine", "pc-q35-rhel9.4.0,usb=off,memory-backend=pc.ram"),
            *("-accel", "kvm", "-cpu", "host"),
        ),
        line("default_alpha", ("kvm",), "pc-q35-rhel9.4.0"),
    ),
    "older libvirt's": (
        cmdline(Q, "-machine", "q35,accel=kvm,usb=off", "-name", "guest=a_b"),
        line("a_b", ("kvm",), "q35"),
    ),
    "capability probe": (
        cmdline(Q, "-S", "-machine", "none,accel=kvm:tcg", "-nodefaults"),
        line(None, ("kvm", "tcg"), "none"),
    ),
    "list of accelerators": (
        cmdline(Q, "-machine", "q35,accel=kvm:tcg"),
        line(None, ("kvm", "tcg"), "q35"),
    ),
    "several -accel": (
        cmdline(Q, "-accel", "kvm", "-accel", "tcg,thread=single"),
        line(None, ("kvm", "tcg")),
    ),
    "accel by its key": (cmdline(Q, "-accel", "accel=tcg,thread=multi"), line(None, ("tcg",))),
    "-enable-kvm": (cmdline(Q, "-enable-kvm"), line(None, ("kvm",))),
    "two dashes": (
        cmdline(Q, "--name", "guest=a_b", "--accel", "kvm", "--machine", "q35", "--enable-kvm"),
        line("a_b", ("kvm", "kvm"), "q35"),
    ),
    "three dashes are no option": (cmdline(Q, "---name", "guest=a_b"), line()),
    "-M": (cmdline(Q, "-M", "virt"), line(None, (), "virt")),
    "type by its key": (
        cmdline(Q, "-machine", "type=virt,accel=tcg"),
        line(None, ("tcg",), "virt"),
    ),
    "name without a key": (cmdline(Q, "-name", "a_b,debug-threads=on"), line("a_b")),
    "name not first": (cmdline(Q, "-name", "debug-threads=on,guest=a_b"), line("a_b")),
    "name with no guest": (cmdline(Q, "-name", "debug-threads=on"), line()),
    "word without a key, not first": (cmdline(Q, "-name", "debug-threads=on,a_b"), line()),
    "doubled commas": (cmdline(Q, "-name", "guest=a,,b_c,,,debug-threads=on"), line("a,b_c,")),
    "only commas": (cmdline(Q, "-name", ",,"), line(",")),
    "doubled commas hide no key": (cmdline(Q, "-name", "x,,guest=y_z"), line("x,guest=y_z")),
    "equals in a name": (cmdline(Q, "-name", "guest=a=b"), line("a=b")),
    "name twice: the last": (
        cmdline(Q, "-name", "guest=first_vm", "-name", "guest=second_vm"),
        line("second_vm"),
    ),
    "guest twice in one option": (cmdline(Q, "-name", "guest=a_b,guest=c_d"), line("c_d")),
    "name given, then only its flags": (
        cmdline(Q, "-name", "guest=a_b", "-name", "debug-threads=on"),
        line("a_b"),
    ),
    "machine twice": (
        cmdline(Q, "-machine", "pc", "-machine", "q35"),
        line(None, (), "q35"),
    ),
    "accelerators of two -machine: the last": (
        cmdline(Q, "-machine", "q35,accel=kvm", "-machine", "accel=tcg"),
        line(None, ("tcg",), "q35"),
    ),
    "empty values": (cmdline(Q, "-name", "", "-accel", "", "-machine", ""), line()),
    "accel= without a value": (cmdline(Q, "-machine", "q35,accel="), line(None, (), "q35")),
    "option at the very end": (cmdline(Q, "-name"), line()),
    "option at the very end, no NUL": (b"qemu\0-accel", line()),
    "no NUL at the end": (b"qemu\0-accel\0tcg", line(None, ("tcg",))),
    "the program is no option": (cmdline("-name", "guest=a_b"), line()),
    "empty: a kernel thread, a zombie": (b"", line()),
    "one word, as a process may rewrite it": (b"qemu-kvm", line()),
    "only NULs": (b"\0\0\0\0", line()),
    "bytes of no encoding": (
        cmdline(Q, "-name") + b"guest=\xff_\xfe\0",
        line("\ufffd_\ufffd"),
    ),
    "newlines": (cmdline(Q, "-name", "guest=a_b\nc"), line("a_b\nc")),
    "huge": (
        cmdline(Q, "-name", "guest=a_b", *(["-device", "x" * 100] * 20_000), "-M", "q35"),
        line("a_b"),
    ),
}


@pytest.mark.parametrize(("raw", "found"), COMMAND_LINES.values(), ids=COMMAND_LINES.keys())
def test_command_line(raw: bytes, found: QemuCommandLine) -> None:
    """A command line is read as QEMU reads it, and no form of it is an error."""
    assert parse_command_line(split_arguments(raw)) == found


WORDS = st.sampled_from(["-name", "-accel", "-M", ",,", "guest=", "="])


@given(st.binary() | st.lists(WORDS).map(lambda words: cmdline(Q, *words)))
def test_no_command_line_is_an_error(raw: bytes) -> None:
    """Any bytes yield a value, and no word in it is empty."""
    found = parse_command_line(split_arguments(raw))
    assert "" not in (found.guest_name, found.machine, *found.accelerators)
