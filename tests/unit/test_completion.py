# SPDX-License-Identifier: Apache-2.0
"""Completion scripts, run by their shells."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from probes.command.cli import main
from probes.command.completion import Shell, script
from probes.command.flags import command_line

COMMANDS = ["agent", "completion", "doctor", "live", "snapshot", "why"]
COMPLETIONS = [
    ("", COMMANDS),
    ("li", ["live"]),
    ("--ver", ["--version"]),
    ("live --type ", ["kvm", "mshv", "tcg", "unknown"]),
    ("live --type t", ["tcg"]),
    ("live --once --rea", ["--reasons"]),
    ("agent --tls-c", ["--tls-cert", "--tls-client-ca"]),
    ("agent --ev", ["--events"]),
    ("live --ev", []),
    ("doctor --j", ["--json"]),
    ("doctor --tls", []),
    ("why --j", ["--json"]),
    ("why --kubeconfig wor", ["words.conf"]),
    ("why default/", []),
    ("completion ", ["bash", "zsh"]),
    ("completion z", ["zsh"]),
    ("agent --log-format ", ["json", "text"]),
    ("live --interval ", []),
    ("agent --kubeconfig wor", ["words.conf"]),
    ("agent --proc ", ["folder"]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that contains a file and a folder to complete."""
    (tmp_path / "words.conf").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


def completion(shell: Shell) -> str:
    return script(command_line({}, version="1"), shell)


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
def test_bash(typed: str, offered: list[str], folder: Path) -> None:
    """bash offers the matching commands, flags, choices, files and folders."""
    words = ["hvprobe", *typed.split(" ")]
    array = " ".join(shlex.quote(word) for word in words)
    program = (
        f"{completion(Shell.BASH)}\n"
        f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}\n"
        'eval "$(complete -p hvprobe | sed "s/complete -F \\([^ ]*\\) .*/\\1/")"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found = sorted(done.stdout.split())
    assert done.stderr == ""
    if not typed:
        found = [word for word in found if not word.startswith("-")]
    if typed == "completion ":
        found = [word for word in found if not word.startswith("-")]
    assert found == offered


ZSH_INSIDE = r"""
autoload -Uz compinit; compinit -u -D
source ./script.zsh
compadd() {
    local -a found
    builtin compadd -A found "$@"
    print -rl -- $found >> offered
    builtin compadd "$@"
}
finish() { : > done }
zle -N finish; bindkey '^X^T' finish
"""
ZSH = r"""
zmodload zsh/zpty zsh/zselect
zpty -b shell zsh -f -i
zpty -w shell 'source ./inside.zsh'
zpty -w -n shell "hvprobe $TYPED"$'\t\x18\x14'
integer turns=0
while [[ ! -e done ]] && (( turns++ < 1000 )); do
    zpty -r -t shell line
    zselect -t 1
done
zpty -d shell
[[ -e done ]]
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("typed", "offered"), [row for row in COMPLETIONS if not row[0].startswith("agent --")]
)
def test_zsh(typed: str, offered: list[str], folder: Path) -> None:
    """zsh offers the same at a real prompt."""
    (folder / "script.zsh").write_text(completion(Shell.ZSH))
    (folder / "inside.zsh").write_text(ZSH_INSIDE)
    subprocess.run(
        ["zsh", "-f", "-c", ZSH],
        cwd=folder,
        env={"TYPED": typed, "PATH": "/usr/bin:/bin", "TERM": "xterm", "HOME": str(folder)},
        check=True,
        capture_output=True,
        timeout=60,
    )
    offers = folder / "offered"
    found = set(offers.read_text().split()) if offers.exists() else set()
    prefix = typed.rpartition(" ")[2]
    assert (
        sorted(
            word
            for word in found
            if word.startswith(prefix) and (prefix or not word.startswith("-"))
        )
        == offered
    )


@pytest.mark.parametrize("shell", list(Shell))
def test_command(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """``hvprobe completion SHELL`` prints the script and nothing else."""
    assert main(["completion", shell.value]) == 0
    assert capsys.readouterr().out == completion(shell)


def test_bash_script_is_clean(tmp_path: Path) -> None:
    """shellcheck finds nothing in the script."""
    # On most machines the Python package installs the program beside the interpreter.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    shellcheck = shutil.which("shellcheck", path=places)
    if shellcheck is None:
        pytest.skip("needs shellcheck")
    path = tmp_path / "completion.bash"
    path.write_text(completion(Shell.BASH))
    done = subprocess.run(
        [shellcheck, "--shell=bash", path], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
