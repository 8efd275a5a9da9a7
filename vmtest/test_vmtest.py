# SPDX-License-Identifier: Apache-2.0
"""vmtest itself: it distinguishes a command's result, a guest's death and a deadline."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.required import require
from vmtest import boot_history
from vmtest.apt import BuildError
from vmtest.build import BUILD_S, BuiltGuest, build, write_initramfs
from vmtest.by_name import UnknownNameError
from vmtest.cache import CACHE_VARIABLE, cache_directory, made_once
from vmtest.choice import choice, deadline_s
from vmtest.in_guest import DEADLINE_S
from vmtest.initramfs import load_order
from vmtest.kernels import kernel_named, selected
from vmtest.results import results_of
from vmtest.vm import boot, cpus_accepted, unavailable

BOOT_S = 300
"""Deadline of a boot on a busy machine. On an idle one it takes about 10 s."""

REPOSITORY = Path(__file__).resolve().parents[1]
NEW = "written-by-a-guest"
"""A file that a guest writes into its repository and that must not reach this one."""
BUILDER = """
import sys
from vmtest import cache
def make(directory):
    (directory / "made").write_text("begun")
    print("begun", flush=True)
    sys.stdin.read()
    (directory / "made").write_text("complete")
cache.made_once("thing", ["recipe"], make)
"""


@pytest.fixture(scope="module")
def guest() -> BuiltGuest:
    kernel = kernel_named("6.1")
    require("guests", unavailable(kernel.architecture))
    return build(kernel)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return cache_directory()


def builder() -> subprocess.Popen[str]:
    """A second run of vmtest that has begun to make `thing`, and ends when its stdin closes."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(BUILD_S + BOOT_S)
def test_the_command_runs_in_the_repository_and_its_exit_code_comes_back(
    guest: BuiltGuest, tmp_path: Path
) -> None:
    """The command gets its environment and working directory, and its exit status is returned.

    What it writes into the repository stays in the guest.
    """
    command = f'test -f vmtest/run.py && touch {NEW} && exit "$WANTED"'
    done = boot(guest, command, tmp_path, deadline_s=BOOT_S, environment={"WANTED": "7"})
    assert done.exit_code == 7, done.console_tail()
    assert not (REPOSITORY / NEW).exists()
    assert guest.release in done.console_tail()


@pytest.mark.timeout(BUILD_S + BOOT_S)
def test_a_guest_that_panics_ends_at_once_and_has_no_exit_code(
    guest: BuiltGuest, tmp_path: Path
) -> None:
    """A kernel panic ends QEMU long before the deadline, and the console shows it."""
    done = boot(guest, "echo c > /proc/sysrq-trigger", tmp_path, deadline_s=BOOT_S)
    assert done.exit_code is None
    assert done.duration_s < BOOT_S
    assert "Kernel panic" in done.console.read_text(errors="replace")


@pytest.mark.timeout(BUILD_S + BOOT_S)
def test_a_machine_that_falls_silent_is_booted_again(
    guest: BuiltGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without signs of life is ended and booted again, up to the given number of times.

    That is recorded, here in a list: the real record is of machines that hang by themselves.
    Here the process that makes the signs is stopped; a hanging emulated CPU has the same effect.
    """
    recorded: list[tuple[str, int]] = []
    monkeypatch.setattr(boot_history, "add", lambda *run: recorded.append(run))
    silence = "pkill -STOP -x sleep; exec tail -f /dev/null"
    done = boot(guest, silence, tmp_path, deadline_s=BOOT_S, silent_s=8, boots_max=2)
    assert (done.exit_code, done.boots) == (None, 2)
    assert recorded == [("6.1", 2)]
    assert "no sign of life for 8 s" in done.console_tail()
    assert "no sign of life for 8 s" in (tmp_path / "hung-1-console.log").read_text()


def test_a_guest_that_hangs_is_ended_at_its_deadline(guest: BuiltGuest, tmp_path: Path) -> None:
    """The result has no exit code, and the console says why it ends."""
    done = boot(guest, "exec tail -f /dev/null", tmp_path, deadline_s=1)
    assert done.exit_code is None
    assert "deadline of 1 s met" in done.console_tail()


def test_a_killed_build_leaves_nothing_that_counts_as_built(empty_cache: Path) -> None:
    """The next build starts over after a build was killed."""
    killed = builder()
    assert killed.stdout is not None
    assert killed.stdout.readline() == "begun\n"
    killed.kill()
    killed.communicate()
    made = made_once("thing", ["recipe"], lambda path: (path / "again").mkdir())
    assert [path.name for path in made.iterdir()] == ["again"]


def test_two_runs_at_once_build_once(empty_cache: Path) -> None:
    """The second run waits for the first and uses what it built."""
    first = builder()
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    second = builder()
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(timeout=60) == 0
    output, _ = second.communicate(timeout=60)
    assert (second.returncode, output) == (0, "")
    first.stdout.close()
    (made,) = empty_cache.glob("thing-*")
    assert (made / "made").read_text() == "complete"


def test_the_initramfs_is_an_archive_that_busybox_reads(guest: BuiltGuest, tmp_path: Path) -> None:
    """Extracted files have the paths, modes and contents that the kernel and the scripts expect."""
    write_initramfs(guest, tmp_path / "archive")
    root = tmp_path / "root"
    root.mkdir()
    archive = (tmp_path / "archive").read_bytes()
    subprocess.run(
        ["busybox", "cpio", "-i"], input=archive, cwd=root, check=True, capture_output=True
    )
    modules = (guest.modules / "boot-order").read_text().splitlines()
    for name in ("boot-order", *modules):
        assert (root / "modules" / name).read_bytes() == (guest.modules / name).read_bytes()
    assert (root / "init").read_text().startswith("#!/bin/busybox sh")
    for program in ("init", "bin/busybox"):
        assert (root / program).stat().st_mode & 0o777 == 0o755


def test_modules_load_after_what_they_depend_on(guest: BuiltGuest, tmp_path: Path) -> None:
    """Modules that need each other have an order. A module that does not exist is an error."""
    (tmp_path / "lib/modules").mkdir(parents=True)
    (tmp_path / "lib/modules" / guest.release).symlink_to(guest.modules / "tree")
    made = [Path(name).name for name in (guest.modules / "boot-order").read_text().splitlines()]
    for first, second in (
        ("virtio_ring.ko", "virtio_pci.ko"),
        ("9pnet.ko", "9pnet_virtio.ko"),
        ("9pnet.ko", "9p.ko"),
    ):
        assert made.index(first) < made.index(second)
    with pytest.raises(BuildError, match="no_such not found"):
        load_order(tmp_path, guest.release, ["no_such"])


def test_qemu_is_asked_how_many_cpus_it_emulates() -> None:
    """The first number that QEMU accepts is taken; if there is none, the error names the last."""
    architecture = kernel_named("6.1").architecture
    require("guests", unavailable(architecture))
    assert cpus_accepted(architecture, (1_000_000, 64, 32)) == 64
    with pytest.raises(BuildError, match="emulates no machine with 1000000 CPUs"):
        cpus_accepted(architecture, (2_000_000, 1_000_000))


def test_kernels_are_selected_by_name() -> None:
    """The kernels of CI are selected by default, and another one if it is named.

    The error for an unknown name lists the known ones.
    """
    assert [kernel.name for kernel in selected({"HVPROBE_KERNELS": "6.12, 5.10"})] == [
        "6.12",
        "5.10",
    ]
    everything = selected({"HVPROBE_KERNELS": "all"})
    assert selected({}) == everything
    assert [kernel.name for kernel in everything] == ["5.10", "6.1", "6.12", "7.2", "6.1-arm64"]
    assert [kernel.name for kernel in selected({"HVPROBE_KERNELS": "6.12-rt"})] == ["6.12-rt"]
    by_name = kernel_named("6.12-arm64")
    assert selected({"HVPROBE_KERNELS": "all,6.12-arm64"}) == (*everything, by_name)
    with pytest.raises(UnknownNameError, match=r"'4\.4'.*6\.1"):
        selected({"HVPROBE_KERNELS": "4.4"})


@pytest.mark.parametrize(
    ("name", "brief", "expected"),
    [
        ("6.1", "5.10", "not host_only"),
        ("6.1", "5.10, 6.1", "every_kernel"),
        ("6.1-arm64", "6.1", ""),
        ("6.1-arm64", "6.1-arm64", "every_kernel or every_architecture"),
    ],
)
def test_what_a_guest_runs(name: str, brief: str, expected: str) -> None:
    """A guest of another architecture runs everything, or what differs there as well.

    For everything it has twice the time.
    """
    kernel, environ = kernel_named(name), {"HVPROBE_BRIEF": brief}
    assert choice(kernel, environ) == expected
    assert deadline_s(kernel, environ) == DEADLINE_S * (1 if expected else 2)


def test_results_of_overlapping_and_killed_runs(tmp_path: Path) -> None:
    """Each run has its own directory. The results of the last one to end stay.

    The directory of a killed run is removed.
    """
    (tmp_path / ".6.1-abandoned").mkdir()
    with results_of("6.1", tmp_path) as first:
        (first / "made-by").write_text("first")
        with results_of("6.1", tmp_path) as second:
            assert second != first
            (second / "made-by").write_text("second")
            assert first.is_dir()
        assert (tmp_path / "6.1" / "made-by").read_text() == "second"
    assert (tmp_path / "6.1" / "made-by").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["6.1"]
