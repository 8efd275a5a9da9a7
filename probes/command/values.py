# SPDX-License-Identifier: Apache-2.0
"""Checks the value of one flag or variable. Pure.

Owns which values are valid, and what a user who gave another one reads. Each function raises
UsageError when the value is wrong. Must not know commands, nor whether files exist.
"""

import math
from enum import StrEnum

from probes.command.flags import TYPES, Authorizing, UsageError
from probes.host.hypervisors import HypervisorType
from probes.report.why import TGID_MAX, Subject, parse_subject
from probes.serve.listen import Listen, parse_listen

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 86400.0
MIN_LEDGER_CAPACITY = 256
MAX_LEDGER_CAPACITY = 65536
LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR"})


class LogFormat(StrEnum):
    """The form of log lines on stderr."""

    TEXT = "text"
    JSON = "json"


def listen(text: str) -> Listen:
    """Parse where the agent listens."""
    try:
        return parse_listen(text)
    except ValueError as err:
        raise UsageError(str(err)) from err


def number(word: str) -> float:
    """Parse a number; NaN: it is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def interval_s(word: str) -> float:
    """Parse an interval in seconds."""
    seconds = number(word)
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise UsageError(
            f"interval {word!r} is not a number of seconds from {MIN_INTERVAL_S:g} to "
            f"{MAX_INTERVAL_S:g}; give one, such as --interval 2"
        )
    return seconds


def tgid(word: str) -> int:
    """Parse a process ID."""
    if not (word.isascii() and word.isdigit() and 0 < int(word) <= TGID_MAX):
        raise UsageError(f"pid {word!r} is not a process ID; use a number, as ps shows it")
    return int(word)


def subject(word: str) -> Subject:
    """Parse what ``why`` is asked about."""
    parsed = parse_subject(word)
    if parsed is None:
        raise UsageError(
            f"{word!a} is neither NAMESPACE/NAME nor a process ID; give one, such as default/alpha "
            "or 4711"
        )
    return parsed


def hypervisor_type(word: str) -> HypervisorType:
    """Parse a type of hypervisor."""
    if word not in TYPES:
        raise UsageError(f"type {word!r} is not known; give {', '.join(TYPES)}")
    return HypervisorType(word)


def authorization(word: str) -> Authorizing:
    """Parse what clients are asked for."""
    if word not in [known.value for known in Authorizing]:
        raise UsageError(f"authorization {word!r} is not known; give {' or '.join(Authorizing)}")
    return Authorizing(word)


def node(name: str) -> str:
    """Check a node's name."""
    # Bytes that are not UTF-8 arrive as surrogates, which no label value can hold. Control
    # characters and direction marks only serve to deceive a reader.
    if not name.isprintable():
        raise UsageError(
            f"node name {name!a} contains unprintable characters; use another with --node"
        )
    return name


def ledger_capacity(word: str | None) -> int | None:
    """Parse the capacity of the kernel table; None: it was not given."""
    if word is None:
        return None
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0
    if not MIN_LEDGER_CAPACITY <= number <= MAX_LEDGER_CAPACITY:
        raise UsageError(
            f"ledger capacity {word!r} is not a number from {MIN_LEDGER_CAPACITY} to "
            f"{MAX_LEDGER_CAPACITY}; give one, or omit it for the default"
        )
    return number


def log_format(word: str) -> LogFormat:
    """Parse the form of log lines."""
    if word not in [known.value for known in LogFormat]:
        raise UsageError(f"log format {word!r} is not known; give {' or '.join(LogFormat)}")
    return LogFormat(word)


def log_level(word: str) -> str:
    """Parse a log level into the name that logging knows."""
    if word.upper() not in LEVELS:
        raise UsageError(f"log level {word!r} is not known; give debug, info, warning or error")
    return word.upper()
