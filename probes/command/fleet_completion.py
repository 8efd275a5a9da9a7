# SPDX-License-Identifier: Apache-2.0
"""Completes ``kubectl hvprobe <TAB>`` from the command line's parser. Pure.

kubectl calls ``kubectl_complete-hvprobe`` with the words after ``kubectl hvprobe``, of which the
last one is being typed and may be empty. It expects one word a line, with a description after a
tab, and at the end a line ``:N`` that says what its shell does with them (kubernetes/kubernetes,
kubectl/pkg/cmd/plugin/plugin_completion.go; N is Cobra's ShellCompDirective).

Owns what is offered. Names of the cluster's objects are asked for and added by the caller.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag

from probes.command.flags import TYPES
from probes.command.fleet_flags import MANY, FleetCommand, add_fleet, with_command

COMPLETE = "__complete"
"""The hidden command of ``hvprobe fleet`` that prints what is offered."""
_REACH = ("--kubeconfig", "--context")


class Directive(IntFlag):
    """What the shell does with the words."""

    FILES = 0
    """It offers files if there is no word."""
    NO_SPACE = 2
    NO_FILES = 4


class Wanted(Enum):
    """Names that only the cluster knows."""

    VM = "subject"
    NAMESPACE = "namespace"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What continues a command line."""

    words: Mapping[str, str]
    """Each word, with its description or nothing."""
    directive: Directive
    typed: str
    """What a word has to begin with."""
    head: str = ""
    """What stands before it: a list's earlier parts, with the last comma."""
    wanted: Wanted | None = None
    reach: tuple[str, ...] = ()
    """The flags that say which cluster is meant, as they were typed."""

    def lines(self, names: Iterable[str] = ()) -> Iterator[str]:
        """Yield what kubectl reads. names: those that were wanted."""
        earlier = set(self.head.split(","))
        for word, words in {**self.words, **dict.fromkeys(names, "")}.items():
            if word.startswith(self.typed) and word not in earlier:
                yield f"{self.head}{word}\t{words}" if words else f"{self.head}{word}"
        yield f":{self.directive.value}"


def offered(words: Sequence[str]) -> Offered:
    """Return what continues the words after ``hvprobe fleet``. The last one is being typed."""
    *complete, typed = words or [""]
    commands = _commands()
    name, *rest = with_command(complete)
    line = _Line(commands.parsers[name], rest)
    if len(rest) == len(complete) and line.open is None and not typed.startswith("-"):
        # No command is named yet.
        shown = {} if line.operands else commands.help
        return Offered(words=shown, directive=Directive.NO_FILES, typed=typed)
    if line.open is not None:
        return _values(line.open, typed, line.reach)
    flag, equals, value = typed.partition("=")
    if equals and flag in line.flags:
        return _values(line.flags[flag], value, line.reach)
    if typed.startswith("-"):
        return Offered(words=line.unused(), directive=Directive.NO_FILES, typed=typed)
    wants_vm = name == FleetCommand.WHY and line.operands == 0
    return Offered(
        words={},
        directive=Directive.NO_FILES,
        typed=typed,
        wanted=Wanted.VM if wants_vm else None,
        reach=line.reach,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commands:
    parsers: Mapping[str, argparse.ArgumentParser]
    help: Mapping[str, str]


def _commands() -> _Commands:
    """Return the commands of ``hvprobe fleet``. argparse has no public way to ask."""
    fleet = argparse.ArgumentParser()
    add_fleet(fleet, {}, types=TYPES)
    (found,) = (
        action
        for action in fleet._actions  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    )
    shown = {choice.dest: choice.help or "" for choice in found._choices_actions}  # noqa: SLF001
    return _Commands(parsers=found.choices, help=shown)


class _Line:
    """The complete words of one command."""

    def __init__(self, command: argparse.ArgumentParser, words: Iterable[str]) -> None:
        self.flags = {
            flag: action
            for action in command._actions  # noqa: SLF001
            for flag in action.option_strings
        }
        self.open: argparse.Action | None = None
        """The flag whose value is being typed."""
        self.operands = 0
        self._used: set[argparse.Action] = set()
        reach: list[str] = []
        for word in words:
            flag, equals, value = word.partition("=")
            if self.open is not None:
                reach += self._reach(self.open, word)
                self.open = None
            elif (action := self.flags.get(flag)) is not None:
                self._used.add(action)
                if equals:
                    reach += self._reach(action, value)
                elif action.nargs != 0:
                    self.open = action
            else:
                self.operands += not word.startswith("-")
        self.reach = tuple(reach)

    def unused(self) -> dict[str, str]:
        """Return the flags that are not on the line yet, with the first words of their help."""
        return {
            flag: (action.help or "").partition(" (HVPROBE_")[0]
            for flag, action in self.flags.items()
            if action not in self._used and flag.startswith("--")
        }

    @staticmethod
    def _reach(action: argparse.Action, value: str) -> list[str]:
        (flag,) = action.option_strings[-1:]
        return [f"{flag}={value}"] if flag in _REACH else []


def _values(action: argparse.Action, typed: str, reach: tuple[str, ...]) -> Offered:
    """Return what can be the value of a flag."""
    metavar = str(action.metavar)
    if metavar == "FILE":
        return Offered(words={}, directive=Directive.FILES, typed=typed)
    many = "[," in metavar or MANY in (action.help or "")
    head, comma, last = typed.rpartition(",") if many else ("", "", typed)
    return Offered(
        words=dict.fromkeys(metavar.split("|"), "") if metavar.islower() else {},
        directive=Directive.NO_FILES | (Directive.NO_SPACE if many else Directive(0)),
        typed=last,
        head=f"{head}{comma}",
        wanted=next((wanted for wanted in Wanted if wanted.value == action.dest), None),
        reach=reach,
    )
