# SPDX-License-Identifier: Apache-2.0
"""Adds flags to a parser of command lines, each with its variable as default. Pure.

Owns how a variable is named after its flag, the words that a switch's variable may hold, and that
wrong usage is one line. Must not know any flag.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off", "")


class UsageError(Exception):
    """A flag or variable is wrong.

    The message is one line; the exit code is 2.
    """


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as one line and as UsageError, unlike argparse."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, instead of ending the process."""
        raise UsageError(f"{' '.join(message.split())}; see {self.prog} --help")


@dataclass(frozen=True, slots=True, kw_only=True)
class _SwitchVariable:
    """The value of a switch's variable, which is checked only when the switch's command is run.

    The grammar covers all commands at once, and the variable of another command's switch must break
    neither this command nor ``--help``.
    """

    name: str
    word: str

    def on(self) -> bool:
        """Return whether the switch is on.

        Raises UsageError when the word is neither true nor false.
        """
        word = self.word.strip().lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise UsageError(
            f"{self.name}={self.word!r} is neither true nor false; use one of "
            f"{', '.join(TRUE_WORDS)} or {', '.join(word for word in FALSE_WORDS if word)}"
        )


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line and its switches. Raises UsageError when one is wrong."""
    found = parser.parse_args(arguments)
    for name, value in [*vars(found).items()]:
        if isinstance(value, _SwitchVariable):
            setattr(found, name, value.on())
    return found


class Flags:
    """Adds flags, each with its environment variable as default."""

    def __init__(
        self,
        parser: argparse.ArgumentParser,
        environment: Mapping[str, str],
        *,
        prefix: str = "HVPROBE_",
    ) -> None:
        """Add flags to a parser. prefix begins the name of each variable."""
        self._parser = parser
        self._environment = environment
        self._prefix = prefix

    def add(
        self, flag: str, *, metavar: str, default: str | None, text: str, short: str | None = None
    ) -> None:
        """Add a flag with a value."""
        variable = self._variable(flag)
        shown = f"; default {default}" if default else ""
        self._parser.add_argument(
            *((short,) if short else ()),
            flag,
            metavar=metavar,
            default=self._environment.get(variable) or default,
            help=f"{text} ({variable}{shown})",
        )

    def add_switch(self, flag: str, *, text: str, short: str | None = None) -> None:
        """Add a flag that is on or off; its variable says so in words."""
        variable = self._variable(flag)
        self._parser.add_argument(
            *((short,) if short else ()),
            flag,
            action="store_true",
            default=_SwitchVariable(name=variable, word=self._environment.get(variable, "")),
            help=f"{text} ({variable})",
        )

    def _variable(self, flag: str) -> str:
        return self._prefix + flag.removeprefix("--").replace("-", "_").upper()
