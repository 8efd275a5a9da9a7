# SPDX-License-Identifier: Apache-2.0
"""hvprobe imports only its own and installed packages, and nothing from the environment."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ebpf import programs
from ebpf.loader_protocol import Request

ROOT = Path(__file__).resolve().parents[2]
PIP_WROTE = """\
# -*- coding: utf-8 -*-
import re
import sys
from probes.__main__ import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
HOSTILE = ("json", "argparse", "logging", "bcc", "tornado", "sitecustomize", "usercustomize", "re")
"""Names that hvprobe, its interpreter or its loader import."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of modules that report their import and end the process that imports them."""
    folder = tmp_path / "hostile"
    (folder / "ebpf").mkdir(parents=True)
    for name in (*HOSTILE, "ebpf/__init__"):
        (folder / f"{name}.py").write_text(
            f"import os\nos.write(2, b'imported {name}\\n')\nos._exit(66)\n"
        )
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with this tree, as pip and isolate.sh write it."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    command_line = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages"]
    subprocess.run([*command_line, str(environment)], check=True)
    (site,) = environment.glob("lib/python3*/site-packages")
    (site / "tree.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    command = environment / "bin/hvprobe"
    command.write_text(f"#!{environment}/bin/python\n{PIP_WROTE}")
    command.chmod(0o755)
    isolate(command)
    return command


def isolate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [ROOT / "scripts/isolate.sh", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1)
    return done


def run(
    command: Sequence[str | Path], *, directory: Path = ROOT, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_installed_command(installed: Path, hostile: Path, proc: Path) -> None:
    """The command and its loader run in a hostile directory with a hostile PYTHONPATH.

    An import by the loader would show in its message about bcc.
    """
    variables = {"PYTHONPATH": str(hostile), "PYTHONSTARTUP": str(hostile / "json.py")}
    for arguments in (["--version"], ["snapshot", "--standalone", "--proc", str(proc)]):
        done = run([installed, *arguments], directory=hostile, variables=variables)
        assert "imported" not in done.stderr
        assert done.returncode == 0, done.stderr
        assert "status 66" not in done.stderr + done.stdout


def test_python_m_probes(hostile: Path, proc: Path) -> None:
    """``PYTHONPATH=TREE python -m probes`` runs that tree and imports nothing else of the path."""
    early = {"sitecustomize", "usercustomize", "re"}  # Python imports these before hvprobe runs
    for name in early:
        (hostile / f"{name}.py").unlink()
    variables = {"PYTHONPATH": f"{ROOT}:{hostile}"}
    for arguments in (["--version"], ["snapshot", "--standalone", "--proc", str(proc)]):
        done = run(
            [sys.executable, "-m", "probes", *arguments], directory=hostile, variables=variables
        )
        assert "imported" not in done.stderr
        assert done.returncode == 0, done.stderr
        assert "status 66" not in done.stderr + done.stdout


def test_the_loader(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader imports nothing from PYTHONPATH, sys.path or the working directory."""
    monkeypatch.setenv("PYTHONPATH", str(hostile))
    monkeypatch.syspath_prepend(hostile)
    monkeypatch.chdir(hostile)
    # Raises when the loader ends without an answer, as a hostile import would make it end.
    loaded = programs._load(Request(files=(), flags=(), maps=(), programs=()))
    loaded.close()


def test_the_tree_is_the_one_that_was_requested(tmp_path: Path) -> None:
    """A tree that PYTHONPATH names is the one whose modules run."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "ebpf").symlink_to(ROOT / "ebpf")
    (tree / "probes/command").mkdir(parents=True)
    for folder in ("probes", "probes/command"):
        for module in (ROOT / folder).iterdir():
            if module.name not in ("command", "cli.py"):
                (tree / folder / module.name).symlink_to(module)
    (tree / "probes/command/cli.py").write_text(
        "def main(**_):\n    print('the other tree')\n    return 7\n"
    )
    command = [sys.executable, "-m", "probes"]
    done = run(command, directory=tmp_path, variables={"PYTHONPATH": str(tree)})
    assert (done.returncode, done.stdout) == (7, "the other tree\n"), done.stderr


@pytest.mark.parametrize("command", ["installed", "tree"])
def test_a_deleted_working_directory(
    command: str, installed: Path, tmp_path: Path, proc: Path
) -> None:
    """All imports and the loader work in a deleted working directory."""
    program = [str(installed)] if command == "installed" else [sys.executable, "-m", "probes"]
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = 'rmdir "$0" && exec "$@"'
    done = run(
        ["sh", "-c", shell, gone, *program, "snapshot", "--standalone", "--proc", proc],
        directory=gone,
        variables={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "getcwd" not in done.stderr
    assert "the process that compiles them" not in done.stderr


@pytest.mark.parametrize(
    ("first", "isolated"),
    [
        ("#!/opt/a/bin/python\n", "#!/opt/a/bin/python -I\n"),
        ("#!/opt/a/bin/python3.13\n", "#!/opt/a/bin/python3.13 -I\n"),
        ("#!/opt/a/bin/python -IB\n", "#!/opt/a/bin/python -I\n"),
        (
            "#!/bin/sh\n'''exec' /long/bin/python3 \"$0\" \"$@\"\n' '''\n",
            "#!/bin/sh\n'''exec' /long/bin/python3 -I \"$0\" \"$@\"\n' '''\n",
        ),
        (
            "#!/bin/sh\n'''exec' \"/a b/bin/python\" \"$0\" \"$@\"\n' '''\n",
            "#!/bin/sh\n'''exec' \"/a b/bin/python\" -I \"$0\" \"$@\"\n' '''\n",
        ),
    ],
)
def test_every_form_of_pips_command(tmp_path: Path, first: str, isolated: str) -> None:
    """Each form, even one that is already isolated, becomes isolated, and the rest is unchanged."""
    command = tmp_path / "hvprobe"
    command.write_text(first + PIP_WROTE)
    assert isolate(command).returncode == 0
    assert command.read_text() == isolated + PIP_WROTE
    assert isolate(command, "-IB").returncode == 0
    assert command.read_text() == isolated.replace(" -I", " -IB") + PIP_WROTE


def test_a_file_that_pip_did_not_write(tmp_path: Path) -> None:
    """Another file is refused in one line, because it would run without isolation."""
    command = tmp_path / "hvprobe"
    command.write_text("#!/usr/bin/env python\n")
    done = isolate(command)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(command) in done.stderr
