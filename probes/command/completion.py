# SPDX-License-Identifier: Apache-2.0
"""Makes completion scripts for shells from the command line's parser. Pure.

Owns what can be completed, which it reads from the parser: a metavar in lower case has choices, as
in ``a|b``; FILE and DIR are paths. shtab owns the form of the scripts. Must not know any command by
name. Import this module only for the command that prints a script.
"""

import argparse
from collections.abc import Iterator

import shtab

from probes.command.flags import Shell

_PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def script(parser: argparse.ArgumentParser, shell: Shell) -> str:
    """Return the script that the shell evaluates once: ``eval "$(hvprobe completion bash)"``.

    The parser cannot parse a command line afterwards.
    """
    for action in _actions(parser):
        metavar = str(action.metavar or "")
        if metavar in _PATHS:
            action.complete = _PATHS[metavar]  # type: ignore[attr-defined] # read by shtab
        elif action.option_strings and metavar.islower():
            action.choices = metavar.split("|")
    return f"{shtab.complete(parser, shell.value).rstrip()}\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of its commands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions(command)
