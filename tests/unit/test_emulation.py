# SPDX-License-Identifier: Apache-2.0
"""Rules about access to a file and about the command lines of virt-launcher and QEMU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.emulation import (
    MAX_TEXT,
    Access,
    Credentials,
    FileOwner,
    accelerators_asked_for,
    allows_emulation,
    is_first_of_namespace,
    parse_credentials,
    plain,
    runs_on,
)

DAC_OVERRIDE = 1 << 1
DAC_READ_SEARCH = 1 << 2
STATUS = """Name:\tqemu-system-x86
Uid:\t107\t107\t107\t107
Gid:\t107\t107\t107\t107
Groups:\t107 36 
NSpid:\t1234\t57
CapEff:\t0000000000000400
"""  # noqa: W291 - the kernel ends the line with a space
EVERYBODY = "         0          0 4294967295\n"


def credentials(
    uid: int = 107, gid: int = 107, groups: tuple[int, ...] = (), capabilities: int = 0
) -> Credentials:
    return Credentials(uid=uid, gid=gid, groups=frozenset(groups), capabilities=capabilities)


@pytest.mark.parametrize(
    ("who", "uid", "gid", "mode", "may"),
    [
        (credentials(), 0, 0, 0o666, True),
        (credentials(), 0, 0, 0o600, False),
        (credentials(), 0, 0, 0o660, False),
        (credentials(), 0, 0, 0o664, False),
        (credentials(), 0, 0, 0o662, False),
        (credentials(), 107, 0, 0o600, True),
        (credentials(), 107, 0, 0o400, False),
        (credentials(), 0, 107, 0o660, True),
        (credentials(groups=(36,)), 0, 36, 0o660, True),
        (credentials(groups=(36,)), 0, 37, 0o660, False),
        # The owner and the group are not among the others.
        (credentials(), 107, 0, 0o066, False),
        (credentials(), 0, 107, 0o606, False),
        (credentials(uid=0), 0, 0, 0o600, True),
        (credentials(uid=0), 107, 107, 0o600, False),
        (credentials(capabilities=DAC_OVERRIDE), 0, 0, 0o000, True),
        (credentials(capabilities=DAC_READ_SEARCH), 0, 0, 0o000, False),
        (credentials(capabilities=~(DAC_OVERRIDE | DAC_READ_SEARCH)), 0, 0, 0o000, False),
    ],
)
def test_open(who: Credentials, uid: int, gid: int, mode: int, may: bool) -> None:
    """One class of mode bits counts, that of the owner, of the group or of all others."""
    assert who.may(Access.READ_WRITE, FileOwner(uid=uid, gid=gid, mode=0o020000 | mode)) is may


@pytest.mark.parametrize(
    ("who", "mode", "may"),
    [
        (credentials(), 0o755, True),
        (credentials(), 0o750, False),
        (credentials(), 0o701, True),
        (credentials(capabilities=DAC_READ_SEARCH), 0o700, True),
        (credentials(capabilities=DAC_OVERRIDE), 0o700, True),
    ],
)
def test_search(who: Credentials, mode: int, may: bool) -> None:
    """A folder on the way needs the x bit, or a capability that replaces it."""
    assert who.may(Access.SEARCH, FileOwner(uid=0, gid=0, mode=mode)) is may


@pytest.mark.parametrize(
    ("uid", "gid", "may"),
    [(100_000, 100_000, True), (0, 100_000, False), (100_000, 0, False), (200_000, 100_000, False)],
)
def test_capability_in_a_user_namespace(uid: int, gid: int, may: bool) -> None:
    """It counts only for files whose user and group the namespace maps."""
    found = parse_credentials(
        STATUS.replace("0400", "0002"), "0 100000 65536\n", "0 100000 65536\n"
    )
    assert found is not None
    assert found.may(Access.READ_WRITE, FileOwner(uid=uid, gid=gid, mode=0)) is may


def test_status() -> None:
    """Users and groups for file access, effective capabilities, and what the namespace maps."""
    text = STATUS.replace("107\t107\t107\t107", "1\t2\t3\t4", 1)
    found = parse_credentials(text, EVERYBODY, "0 1000 1\n1 5000 10\n")
    assert found == Credentials(
        uid=4,
        gid=107,
        groups=frozenset({107, 36}),
        capabilities=0x400,
        uids=(range((1 << 32) - 1),),
        gids=(range(1000, 1001), range(5000, 5010)),
    )


@pytest.mark.parametrize(
    ("status", "uid_map"),
    [
        ("", EVERYBODY),
        (STATUS.replace("Groups", "Group"), EVERYBODY),
        (STATUS.replace("107\n", "x\n", 1), EVERYBODY),
        (STATUS.replace("\t107\n", "\n", 1), EVERYBODY),
        (STATUS, "0 0\n"),
    ],
)
def test_malformed_status(status: str, uid_map: str) -> None:
    """A field that is missing or malformed makes the credentials unknown."""
    assert parse_credentials(status, uid_map, EVERYBODY) is None


def test_unmapped_namespace() -> None:
    """In a namespace without a map no capability counts."""
    found = parse_credentials(STATUS.replace("0400", "0002"), "", "")
    assert found is not None
    assert not found.may(Access.READ_WRITE, FileOwner(uid=0, gid=0, mode=0))


@given(st.text(), st.text())
def test_any_status(status: str, uid_map: str) -> None:
    """No text makes the parser fail."""
    parse_credentials(status, uid_map, uid_map)
    is_first_of_namespace(status)


@pytest.mark.parametrize(
    ("numbers", "first"),
    [("1", True), ("1234\t1", True), ("1234\t57", False), ("11", False), ("", False)],
)
def test_first_of_a_namespace(numbers: str, first: bool) -> None:
    """The innermost number counts."""
    assert is_first_of_namespace(f"Name:\tx\nNSpid:\t{numbers}\nUid:\t1\n") is first


def test_no_number_at_all() -> None:
    """A status without the line is not that of a first process."""
    assert not is_first_of_namespace("Name:\tx\n")


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("", False),
        ("--name vm --uid 1", False),
        ("--name vm --allow-emulation", True),
        ("--allow-emulation=true --name vm", True),
        ("--allow-emulation=false", False),
        ("--allow-emulation --allow-emulation=0", False),
        ("--allow-emulation=1", True),
        ("--allow-emulation=yes", False),
        ("--allow-emulation-not", False),
        ("-- --allow-emulation", False),
    ],
)
def test_options_of_virt_launcher(options: str, allowed: bool) -> None:
    """Go's rules for a switch: a value may follow after =, and the last one counts."""
    assert allows_emulation(["virt-launcher", *options.split()]) is allowed


def test_the_programs_own_name_is_no_option() -> None:
    """The first word is the program."""
    assert not allows_emulation(["--allow-emulation"])
    assert not allows_emulation([])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("qemu-system-x86_64 -accel kvm -accel tcg", ("kvm", "tcg")),
        ("qemu-system-x86_64 -machine q35,accel=kvm:tcg", ("kvm", "tcg")),
        ("qemu-system-x86_64 -enable-kvm", ("kvm",)),
        ("qemu-system-x86_64 -m 64", ("tcg",)),
        ("/usr/libexec/qemu-kvm -m 64", ("kvm", "tcg")),
        ("/usr/libexec/qemu-kvm -accel tcg", ("tcg",)),
        ("", ("tcg",)),
    ],
)
def test_what_qemu_was_asked_for(arguments: str, names: tuple[str, ...]) -> None:
    """Without a list the program's name decides, as in QEMU."""
    assert accelerators_asked_for(arguments.split()) == names


@pytest.mark.parametrize(
    ("architecture", "machine", "runs"),
    [
        ("x86_64", "x86_64", True),
        ("i386", "x86_64", True),
        ("aarch64", "x86_64", False),
        ("aarch64", "aarch64", True),
        ("arm", "aarch64", False),
        ("ppc64", "ppc64le", True),
        ("s390x", "s390x", True),
        ("x86_64", "i686", False),
    ],
)
def test_architectures(architecture: str, machine: str, runs: bool) -> None:
    """QEMU's word for the architecture that a node accelerates may differ from the kernel's."""
    assert runs_on(architecture, machine) is runs


def test_foreign_text() -> None:
    """What a process chose is one short line."""
    assert plain("kvm") == "kvm"
    assert plain("a\nb\x1b[1m") == "a?b?[1m"
    assert plain("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert plain("x" * 1000) == "x" * MAX_TEXT + "…"
