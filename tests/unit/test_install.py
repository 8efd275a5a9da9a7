# SPDX-License-Identifier: Apache-2.0
"""scripts/install.sh on simulated machines, which are folders of programs that record calls."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
NEEDED = (
    *("awk", "bash", "cat", "chmod", "cp", "dirname", "env", "flock", "grep", "head", "id", "ln"),
    *("mkdir", "mktemp", "mv", "rm", "sed", "sh", "sha256sum", "tail", "uname"),
)
"""Programs that install.sh uses and that every Linux system has."""
PYTHON = """\
#!/bin/sh
# Records its call. `-m venv` makes an environment of links to this file. pip only succeeds.
printf '%s\\n' "$(dirname "$0" | sed "s|^$TREE/||"): $*" >>"$CALLS"
case "$*" in
*"version_info < (3, 11)"*) exit {too_old} ;;
*"import ensurepip"* | "-m pip --version") exit 0 ;;
*"import bcc"*) exit {lacks_bcc} ;;
-V) echo "Python of $(dirname "$(readlink -f "$0")")" ;;
"-m venv"*)
	for target in "$@"; do :; done
	[ "$3" != --clear ] || rm -rf "$target"
	mkdir -p "$target/bin"
	ln -s "$0" "$target/bin/python"
	echo "VIRTUAL_ENV=$target" >"$target/bin/activate"
	case "$*" in *--system-site-packages*) seen=true ;; *) seen=false ;; esac
	echo "include-system-site-packages = $seen" >"$target/pyvenv.cfg"
	;;
"-m pip install"*)
	printf '#!%s/python\\n' "$(dirname "$0")" >"$(dirname "$0")/hvprobe"
	chmod +x "$(dirname "$0")/hvprobe"
	;;
*) exec {real} "$@" ;;
esac
"""
DPKG_QUERY = """\
#!/bin/sh
# Every package is installed.
shift 3
for package in "$@"; do echo "installed $package"; done
"""


@dataclass(kw_only=True, slots=True)
class Machine:
    """A machine with a copy of the files that install.sh reads."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "tree"

    @property
    def distribution_python(self) -> Path:
        return self.root / "distribution/python3"

    def add(self, name: str, text: str) -> None:
        """Add a program. ``name`` includes its folder, of which ``bin`` is on PATH."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, name: str, *, too_old: bool = False, bcc: bool = False) -> None:
        """Add an interpreter that records its calls."""
        text = PYTHON.format(too_old=int(too_old), lacks_bcc=int(not bcc), real=sys.executable)
        self.add(name, text)

    def add_debian(self, *, bcc: bool = True) -> None:
        """Add the distribution's interpreter and packages, all of which are installed."""
        self.add_python("distribution/python3", bcc=bcc)
        self.add("bin/dpkg", "#!/bin/sh\necho amd64\n")
        self.add("bin/dpkg-query", DPKG_QUERY)
        self.add("bin/apt-get", '#!/bin/sh\necho "apt-get $*" >>"$CALLS"\nexit 1\n')

    def install(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.tree / "scripts/install.sh", *words],
            env={
                "PATH": str(self.root / "bin"),
                "CALLS": str(self.root / "calls"),
                "TMPDIR": str(self.root),
                "TREE": str(self.tree),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self, word: str) -> list[str]:
        """The recorded calls with this word. The record is then empty."""
        record = self.root / "calls"
        lines = record.read_text().splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return [line for line in lines if word in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine without Python, apt and dpkg."""
    made = Machine(root=tmp_path)
    (made.root / "bin").mkdir()
    (made.tree / "scripts").mkdir(parents=True)
    for name in (*LOCKS, "pyproject.toml", "scripts/isolate.sh", "scripts/packages.txt"):
        shutil.copy(ROOT / name, made.tree / name)
    text = (ROOT / "scripts/install.sh").read_text()
    assert text.count("/usr/bin/python3") == 1
    made.add(
        "tree/scripts/install.sh", text.replace("/usr/bin/python3", str(made.distribution_python))
    )
    for name in (*NEEDED, "readlink"):
        found = shutil.which(name)
        assert found is not None, name
        (made.root / "bin" / name).symlink_to(found)
    return made


def succeeded(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_python_needs_no_distribution(machine: Machine) -> None:
    """Any recent python3 makes .venv, and pip installs the lock of dev, then the project."""
    machine.add_python("bin/python3", too_old=True)
    machine.add_python("bin/python3.12")
    lines = succeeded(machine.install("python"))
    assert lines[-1] == "install: up to date"
    calls = machine.calls("")
    (venv,) = [line for line in calls if "-m venv" in line]
    assert venv.endswith(f"bin: -m venv --clear {machine.tree}/.venv")
    lock, project = [line for line in calls if "pip install" in line]
    assert lock.startswith(".venv/bin: ")
    assert lock.endswith(f"--require-hashes --requirement {machine.tree}/requirements-dev.lock")
    assert project.startswith(".venv/bin: ")
    assert project.endswith(f"--no-deps --editable {machine.tree}")


def test_run_installs_the_lock_of_the_image(machine: Machine) -> None:
    """``run`` installs exactly the packages that the image contains."""
    machine.add_debian()
    succeeded(machine.install("run"))
    lock, _ = machine.calls("pip install")
    assert lock.endswith(f"--require-hashes --requirement {machine.tree}/requirements.lock")


def test_no_lock(machine: Machine) -> None:
    """Without the lock nothing is installed, and one line says which file is missing."""
    machine.add_python("bin/python3")
    (machine.tree / "requirements-dev.lock").unlink()
    done = machine.install("python")
    assert done.returncode == 1
    assert "requirements-dev.lock is missing" in done.stderr
    assert machine.calls("pip install") == []


@pytest.mark.parametrize("changed", ["pyproject.toml", *LOCKS])
def test_second_call_installs_nothing(machine: Machine, changed: str) -> None:
    """Nothing is installed again until pyproject.toml or a lock changes."""
    machine.add_python("bin/python3")
    succeeded(machine.install("python"))
    machine.calls("")
    assert succeeded(machine.install("python")) == ["install: up to date"]
    assert machine.calls("-m") == []
    with (machine.tree / changed).open("a") as file:
        file.write("# changed\n")
    succeeded(machine.install("python"))
    assert len(machine.calls("pip install")) == 2


def test_no_recent_python(machine: Machine) -> None:
    """Without a recent python3, one line says what to install."""
    machine.add_python("bin/python3", too_old=True)
    done = machine.install("python")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "3.11 or later" in line
    assert "python3-venv" in line


def test_own_venv_is_kept(machine: Machine) -> None:
    """A .venv of another interpreter that the user made is kept for lint and unit tests."""
    machine.add_debian()
    machine.add_python("own/python3.14")
    venv = machine.tree / ".venv"
    subprocess.run(
        [machine.root / "own/python3.14", "-m", "venv", venv],
        env={"PATH": str(machine.root / "bin"), "CALLS": "/dev/stdout", "TREE": str(machine.tree)},
        check=True,
        capture_output=True,
    )
    succeeded(machine.install("python"))
    calls = machine.calls("-m")
    assert [line for line in calls if "-m venv" in line] == []
    assert (venv / "bin/python").resolve() == machine.root / "own/python3.14"


def test_run_makes_the_venv_again(machine: Machine) -> None:
    """``run``, which needs bcc, replaces the .venv of another interpreter by the distribution's."""
    machine.add_python("bin/python3")
    succeeded(machine.install("python"))
    machine.calls("")
    machine.add_debian()
    succeeded(machine.install("run"))
    (venv,) = machine.calls("-m venv")
    assert venv.endswith(f"-m venv --clear --system-site-packages {machine.tree}/.venv")
    assert (machine.tree / ".venv/bin/python").resolve() == machine.distribution_python
    succeeded(machine.install("python"))
    assert [line for line in machine.calls("-m") if "-m venv" in line] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["run", "test"], ["python"]),
        (["run", "test"], ["run"]),
        (["python"], ["run", "test"]),
        (["python"], ["run"]),
    ],
)
def test_one_venv_serves_both(machine: Machine, first: list[str], second: list[str]) -> None:
    """On Debian with bcc, the .venv for one word is up to date for the other."""
    machine.add_debian()
    succeeded(machine.install(*first))
    machine.calls("")
    assert succeeded(machine.install(*second)) == ["install: up to date"]
    assert machine.calls("pip install") == []


def test_run_and_python_do_not_undo_each_other(machine: Machine) -> None:
    """Even if bcc came after lint, ``run`` and ``python`` in turn soon install nothing more."""
    machine.add_debian(bcc=False)
    succeeded(machine.install("python"))
    assert "import bcc" in machine.install("run").stderr
    machine.add_debian()
    for words in (["run"], ["python"]):
        succeeded(machine.install(*words))
    machine.calls("")
    for words in (["run"], ["python"], ["run", "test"]):
        assert succeeded(machine.install(*words)) == ["install: up to date"]
    assert machine.calls("pip install") == []


def test_packages_need_apt(machine: Machine) -> None:
    """Without apt, ``run`` fails with one line that names what still works."""
    machine.add_python("bin/python3")
    done = machine.install("run")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "no apt-get" in line
    assert "make lint test-unit" in line


@pytest.mark.parametrize("words", [[], ["--root"], ["nonsense"], ["run", "nonsense"]])
def test_usage(machine: Machine, words: list[str]) -> None:
    """Wrong arguments print one line with the usage and install nothing."""
    done = machine.install(*words)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "usage: scripts/install.sh" in line
