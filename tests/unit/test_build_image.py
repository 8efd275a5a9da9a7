# SPDX-License-Identifier: Apache-2.0
"""What scripts/build-image.sh passes to the build on a machine with a hostile configuration."""

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX = "https://index.example/simple"
XDG = """
[global]
constraint = /etc/pip/constraints.txt
index-url = file:///srv/pypi/simple
quiet = 3
"""
USER = """
[install]
find-links = /srv/wheels
requirement = /srv/requirements.txt
target = /srv/target
no-index = true
trusted-host = overridden.example
"""
GIVEN = """
[global]
cert = /etc/pip/ca.pem
client-cert = /etc/pip/client.pem
index-url = https://overridden.example/simple
log = /var/log/pip.log
timeout = 33
[install]
extra-index-url = file:///srv/pypi/simple
    https://user:secret@more.example/simple
    /srv/wheels/simple
proxy = http://proxy.example:3128
trusted-host = index.example
    more.example
[download]
index-url = https://download.example/simple
"""
"""The file that PIP_CONFIG_FILE names, which overrides all other files."""
ENVIRONMENT = {
    "PIP_INDEX_URL": INDEX,
    "PIP_FIND_LINKS": "/srv/wheels",
    "PIP_BUILD_CONSTRAINT": "/srv/constraints.txt",
    "PIP_DEFAULT_TIMEOUT": "180",
    "PIP_CACHE_DIR": "/srv/cache",
    "PIP_PREFIX": "/srv/prefix",
    "PIP_RETRIES": "7",
}
PASSED_ON = {
    "index-url": INDEX,
    "extra-index-url": "https://user:secret@more.example/simple",
    "proxy": "http://proxy.example:3128",
    "trusted-host": "index.example more.example",
    "timeout": "180",
    "retries": "7",
}


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with pip configuration at every level.

    These levels override the /etc/pip.conf of the machine that runs the test.
    """
    for level, text in (("xdg", XDG), ("home/.config", USER), ("given", GIVEN)):
        file = tmp_path / level / "pip/pip.conf"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "XDG_", "PYTHON"))
    }
    return {
        **inherited,
        **ENVIRONMENT,
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_DIRS": str(tmp_path / "xdg"),
        "PIP_CONFIG_FILE": str(tmp_path / "given/pip/pip.conf"),
    }


def pip_config(environment: Mapping[str, str], *arguments: str) -> str:
    """The output of scripts/pip_config.py."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/pip_config.py"), *arguments],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_script(commands: str, *arguments: str) -> str:
    """The output of shell commands that use the functions of scripts/build-image.sh."""
    sourced = 'script=$1; shift; source "$script"; '
    script = str(ROOT / "scripts/build-image.sh")
    done = subprocess.run(
        # The script builds nothing when it is sourced.
        ["bash", "-c", sourced + commands, "test", script, *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "HVPROBE_DEBIAN_MIRROR": ""},
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_the_options_for_an_index_are_passed_on(machine: dict[str, str]) -> None:
    """The highest level decides each option, and no option with a file or directory is passed."""
    built = configparser.RawConfigParser()
    built.read_string(pip_config(machine))
    assert {name: dict(built[name]) for name in built.sections()} == {"global": PASSED_ON}


def test_pip_reads_what_is_passed_on(machine: dict[str, str], tmp_path: Path) -> None:
    """A pip that sees nothing else of the machine, as in the build, reads the passed options."""
    passed = tmp_path / "pip.conf"
    passed.write_text(pip_config(machine))
    seen = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        check=True,
        # Hides the configuration of the machine that runs this test.
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "nowhere"),
            "XDG_CONFIG_DIRS": str(tmp_path / "nowhere"),
            "PIP_CONFIG_FILE": str(passed),
        },
        text=True,
    ).stdout.splitlines()
    assert {f"global.{name}={value!r}" for name, value in PASSED_ON.items()} <= set(seen)


def test_the_lock_depends_on_nothing_else(machine: dict[str, str]) -> None:
    """uv gets only the options for an index and the certificates, and the user's own index."""
    program = "from pip_config import *; print(json.dumps(uv_environment(effective(listed()))))"
    of_uv = {"UV_CACHE_DIR": "/srv/uv", "UV_CONSTRAINT": "/srv/constraints.txt"}
    made = json.loads(
        subprocess.run(
            [sys.executable, "-c", f"import json; {program}"],
            capture_output=True,
            check=True,
            env={**machine, **of_uv, "PYTHONPATH": str(ROOT / "scripts")},
            text=True,
        ).stdout
    )
    assert {name: value for name, value in made.items() if name.startswith("UV_")} == {
        "UV_NO_CONFIG": "1",
        "UV_CACHE_DIR": "/srv/uv",
        "UV_DEFAULT_INDEX": INDEX,
        "UV_INDEX": PASSED_ON["extra-index-url"],
        "UV_INSECURE_HOST": PASSED_ON["trusted-host"],
        "UV_HTTP_TIMEOUT": PASSED_ON["timeout"],
        "UV_HTTP_RETRIES": PASSED_ON["retries"],
    }
    assert made["ALL_PROXY"] == PASSED_ON["proxy"]
    assert made["SSL_CERT_FILE"] == "/etc/pip/ca.pem"


def test_the_certificates_are_those_of_pip(machine: dict[str, str]) -> None:
    """The file that is mounted into the build is the one that the configuration names."""
    assert pip_config(machine, "--certificates") == "/etc/pip/ca.pem\n"
    assert pip_config({**machine, "PIP_CERT": "/srv/ca.pem"}, "--certificates") == "/srv/ca.pem\n"


def test_a_configuration_that_pip_refuses_is_one_line(
    machine: dict[str, str], tmp_path: Path
) -> None:
    """The build fails with the reason and does not continue without the configuration."""
    (tmp_path / "given/pip/pip.conf").write_text("index-url = without a section\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/pip_config.py")],
        capture_output=True,
        check=False,
        env=machine,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "given/pip/pip.conf") in done.stderr


def test_a_mirror_in_a_directory_is_skipped() -> None:
    """A mirror in a directory of this machine is skipped, because the image lacks the directory."""
    sources = "file:/srv/debian/\\nmirror+file:/etc/apt/debian\\nhttp://deb.example/debian/\\n"
    shown = in_script(f"apt-get() {{ printf '{sources}'; }}; mirror")
    assert shown == "http://deb.example/debian/\n"


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (
            (
                "WARNING: a warning\n"
                "ERROR: Could not open requirements file: [Errno 2] No such file or directory\n"
                'Error: building at STEP "RUN --mount=type=secret,id=ca if [ -s /run ]; then pip": '
                "while running runtime: exit status 1\n"
            ),
            "Could not open requirements file: [Errno 2] No such file or directory",
        ),
        (
            (
                "E: Unable to locate package python3-bpfcc\n"
                'Error: building at STEP "RUN apt-get -q update": exit status 100\n'
            ),
            "Unable to locate package python3-bpfcc",
        ),
        (
            'Error: building at STEP "RUN find / -name "*.pyc" && false": exit status 1\n',
            "a step of the Dockerfile: exit status 1",
        ),
        ("no error at all\n", "no reason given"),
    ],
    ids=["pip", "apt", "another command", "silence"],
)
def test_the_error_shown_is_the_tools_own(tmp_path: Path, log: str, shown: str) -> None:
    """The reason is one line of pip or apt, never the complete RUN step."""
    file = tmp_path / "build.log"
    file.write_text(log)
    assert in_script('why "$1"', str(file)) == shown


FORMAT = r":qemu-aarch64:M::\x7f\x45:\xff\xff:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OPF"
BINFMT = """
misc=$1 formats=$1 arch=arm64 native=amd64 secrets=
machine() { printf 'enabled\\nflags: %s\\n' "$1" >"$misc/qemu-aarch64"; }
"""
"""A machine that builds for arm64. ``machine`` registers a format before the build does."""


@pytest.mark.parametrize("machine", ["", "machine OC"], ids=["no format", "without flag F"])
def test_the_format_that_the_build_registers_is_removed(tmp_path: Path, machine: str) -> None:
    """The distribution's line is registered under a name of the build's own until it ends."""
    (tmp_path / "register").touch()
    (tmp_path / "qemu-aarch64.conf").write_text(FORMAT + "\n")
    in_script(f"{BINFMT}{machine}\nrun_foreign; clean_up", str(tmp_path))
    registered = (tmp_path / "register").read_text()
    assert registered == FORMAT.replace("qemu", "hvprobe", 1) + "\n"
    assert (tmp_path / "hvprobe-aarch64").read_text() == "-1"


def test_the_machines_own_format_is_used_and_stays(tmp_path: Path) -> None:
    """A build leaves a registration that works in roots as it is."""
    (tmp_path / "register").touch()
    in_script(f"{BINFMT}machine POCF; run_foreign; clean_up", str(tmp_path))
    assert (tmp_path / "register").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qemu-aarch64", "register"]


def test_a_missing_interpreter_is_one_line(tmp_path: Path) -> None:
    """The error names the package, and nothing is removed at the end."""
    (tmp_path / "register").touch()
    build = "(trap clean_up EXIT; run_foreign) 2>&1 || true"
    (line,) = in_script(BINFMT + build, str(tmp_path)).splitlines()
    assert line.endswith("qemu-aarch64.conf is missing: install the package qemu-user-static")
    assert [path.name for path in tmp_path.iterdir()] == ["register"]
