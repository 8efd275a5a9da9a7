# SPDX-License-Identifier: Apache-2.0
"""Completion scripts, run by their shells."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from probes.command.cli import main
from probes.command.completion import script
from probes.command.flags import Shell, command_line
from tests.support.required import require

COMMANDS = ["agent", "completion", "doctor", "fleet", "live", "snapshot", "why"]
COMPLETIONS = [
    ("", COMMANDS),
    ("li", ["live"]),
    ("--ver", ["--version"]),
    ("live --type ", ["kvm", "mshv", "tcg", "unknown"]),
    ("live --type t", ["tcg"]),
    ("live --once --rea", ["--reasons"]),
    ("agent --tls-c", ["--tls-cert", "--tls-client-ca"]),
    ("agent --ev", ["--events"]),
    ("agent --authorization ", ["kubernetes", "none"]),
    ("live --ev", []),
    ("doctor --j", ["--json"]),
    ("doctor --tls", []),
    ("why --j", ["--json"]),
    ("why --kubeconfig wor", ["words.conf"]),
    ("why default/", []),
    ("completion ", ["bash", "fish", "tcsh", "zsh"]),
    ("completion z", ["zsh"]),
    ("agent --log-format ", ["json", "text"]),
    ("live --interval ", []),
    ("agent --kubeconfig wor", ["words.conf"]),
    ("agent --proc ", ["folder"]),
    ("fleet ", ["doctor", "nodes", "vmis", "why"]),
    ("fleet no", ["nodes"]),
    ("fleet vmis --fail-on ", ["kvm", "mshv", "tcg", "unknown"]),
    ("fleet vmis --cause dev", ["device_inaccessible", "device_missing_in_pod"]),
    ("fleet nodes --output ", ["csv", "json", "wide"]),
    ("fleet doctor --output ", ["json"]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that contains a file and a folder to complete."""
    (tmp_path / "words.conf").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


def needs(shell: Shell) -> None:
    require("shells", None if shutil.which(shell.value) else f"this needs {shell.value}")


def completion(shell: Shell) -> str:
    return script(command_line({}, version="1"), shell)


def matching(found: list[str], typed: str) -> list[str]:
    """What continues the word typed last; flags only once a dash is typed."""
    prefix = typed.rpartition(" ")[2]
    return sorted(
        {word for word in found if word.startswith(prefix) and (prefix or not word.startswith("-"))}
    )


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
def test_bash(typed: str, offered: list[str], folder: Path) -> None:
    """bash offers the matching commands, flags, choices, files and folders."""
    words = ["hvprobe", *typed.split(" ")]
    array = " ".join(shlex.quote(word) for word in words)
    program = (
        f"{completion(Shell.BASH)}\n"
        f"COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}\n"
        'eval "$(complete -p hvprobe | sed "s/.* -F \\([^ ]*\\) .*/\\1/")"\n'
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
eval "$(<script.zsh)"
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


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
def test_zsh(typed: str, offered: list[str], folder: Path) -> None:
    """zsh offers the same at a real prompt."""
    needs(Shell.ZSH)
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
    assert matching(offers.read_text().split() if offers.exists() else [], typed) == offered


@pytest.mark.parametrize(("typed", "offered"), COMPLETIONS)
def test_fish(
    typed: str, offered: list[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """fish offers the same; it shows a folder with a slash, and a description after a tab."""
    needs(Shell.FISH)
    home = tmp_path_factory.mktemp("home")
    (home / "script.fish").write_text(completion(Shell.FISH))
    program = f"source {home}/script.fish; complete -C {shlex.quote(f'hvprobe {typed}')}"
    done = subprocess.run(
        ["fish", "-c", program],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words = [line.partition("\t")[0].rstrip("/") for line in done.stdout.splitlines()]
    assert matching(words, typed) == offered


def test_tcsh(folder: Path) -> None:
    """tcsh accepts the script and then knows commands, flags, choices, files and folders."""
    needs(Shell.TCSH)
    (folder / "script.tcsh").write_text(completion(Shell.TCSH))
    done = subprocess.run(
        ["tcsh", "-f", "-c", "source script.tcsh; complete hvprobe"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    for rule in (
        "p/1/(agent live snapshot why doctor fleet completion)/",
        "n/completion/(bash zsh fish tcsh)/",
        "n/--type/(kvm tcg mshv unknown)/",
        "n/--kubeconfig/f/",
        "n/--proc/d/",
    ):
        assert rule in done.stdout


@pytest.mark.parametrize("shell", list(Shell))
def test_command(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """``hvprobe completion SHELL`` prints the script and nothing else."""
    assert main(["completion", shell.value]) == 0
    assert capsys.readouterr().out == completion(shell)
