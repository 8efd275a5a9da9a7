# SPDX-License-Identifier: Apache-2.0
"""Turns the command line's parser into completion scripts for bash and zsh. Pure.

Owns the form of the scripts. What can be completed is read from the parser itself: a metavar
``a|b`` is a choice, FILE and DIR are paths. Must not know any command by name.
"""

import argparse
import shlex
from collections.abc import Iterator
from enum import StrEnum


class Shell(StrEnum):
    """The shells for which scripts exist."""

    BASH = "bash"
    ZSH = "zsh"


def script(parser: argparse.ArgumentParser, shell: Shell) -> str:
    """Return the script that the shell evaluates once: ``eval "$(hvprobe completion bash)"``."""
    body = "\n".join(_cases(parser))
    frame = _BASH if shell is Shell.BASH else _ZSH
    name = parser.prog.replace("-", "_")
    return frame.replace("@CASES@", body).replace("@NAME@", name).replace("@PROG@", parser.prog)


def _cases(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield shell code that sets $words or $paths from $command and $previous."""
    commands = _commands(parser)
    yield '    case "$command" in'
    yield f'    "") words={shlex.quote(" ".join([*_flags(parser), *commands]))} ;;'
    for name, command in commands.items():
        yield f"    {name})"
        yield '        case "$previous" in'
        for action in command._actions:  # noqa: SLF001 - argparse has no other way to ask
            if action.option_strings and action.metavar:
                flags = "|".join(action.option_strings)
                yield f"        {flags}) {_values(str(action.metavar))} ;;"
        words = [*_flags(command), *_choices(command)]
        yield f"        *) words={shlex.quote(' '.join(words))} ;;"
        yield "        esac ;;"
    yield "    esac"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: command
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        for name, command in action.choices.items()
    }


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [
        flag
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to ask
        for flag in action.option_strings
        if flag.startswith("--")
    ]


def _choices(command: argparse.ArgumentParser) -> list[str]:
    """Return the words that a command accepts besides flags."""
    return [
        str(choice)
        for action in command._actions  # noqa: SLF001 - argparse has no other way to ask
        if not action.option_strings
        for choice in action.choices or ()
    ]


def _values(metavar: str) -> str:
    if "|" in metavar:
        return f"words={shlex.quote(metavar.replace('|', ' '))}"
    return {"FILE": "paths=files", "DIR": "paths=folders"}.get(metavar, "words=")


_BASH = """\
# bash completion of @PROG@: eval "$(@PROG@ completion bash)"
_@NAME@() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command="" words="" paths=""
    if [ "$COMP_CWORD" -gt 1 ]; then command=${COMP_WORDS[1]}; fi
@CASES@
    case "$paths" in
    files) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    folders) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;
    esac
}
complete -F _@NAME@ @PROG@
"""
_ZSH = """\
#compdef @PROG@
# zsh completion of @PROG@, after compinit: eval "$(@PROG@ completion zsh)"
_@NAME@() {
    # The variable `words` is zsh's own here: what has been typed is read before it is hidden.
    local previous=${words[CURRENT-1]} command=""
    if (( CURRENT > 2 )); then command=${words[2]}; fi
    local words="" paths=""
@CASES@
    case "$paths" in
    files) _files ;;
    folders) _files -/ ;;
    *) compadd -- ${=words} ;;
    esac
}
compdef _@NAME@ @PROG@
"""
