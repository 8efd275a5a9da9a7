"""A command line's words and variables → Settings: what a value may be. Pure.

Must not open, resolve or start anything: whether a file or a folder is there says inputs.py.
"""

import argparse
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from probes.completion import Shell
from probes.flags import DEFAULT_LISTEN, TYPES, Command, UsageError, command_line, parsed
from probes.http.listen import Listen, TlsFiles, parse_listen
from probes.live.rows import LiveOptions, Selection
from probes.vmm import HypervisorType

LEAST_INTERVAL_S = 0.1
MOST_INTERVAL_S = 86400.0
LEAST_LEDGER_CAPACITY = 256
MOST_LEDGER_CAPACITY = 65536
TGID_MAX = 1 << 22
"""Linux numbers no process higher (include/linux/threads.h, PID_MAX_LIMIT)."""
EXIT_USAGE = 2
LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR"})


class LogFormat(StrEnum):
    """Form of the log lines on stderr."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a user can set."""

    command: Command
    node: str
    """Name of this node, the label ``node`` of every series."""
    standalone: bool | None
    """True: no cluster; False: a cluster; None: a cluster when a service account is mounted."""
    kubeconfig: Path | None
    proc_root: Path
    sys_root: Path
    ledger_capacity: int | None
    """Processes that fit into the kernel table; None: as the machine's size suggests."""
    log_format: LogFormat
    log_level: str
    listen: Listen
    tls: TlsFiles | None
    live: LiveOptions
    json: bool
    """Whether ``doctor`` and ``live`` are to print JSON."""
    shell: Shell | None
    """Whose completion script is wanted; None: another command."""

    @property
    def looks_once(self) -> bool:
        """Whether the command looks at the node and ends: names that come later come too late."""
        if self.command is Command.LIVE:
            return self.live.once
        return self.command in (Command.SNAPSHOT, Command.DOCTOR)


def parse(arguments: Sequence[str], environment: Mapping[str, str], *, version: str) -> Settings:
    """Settings of a command line. Raises UsageError; ``--help`` and ``--version`` exit."""
    found = parsed(command_line(environment, version=version), arguments)
    try:
        return Settings(
            command=Command(found.command),
            node=_node(found.node or environment.get("NODE_NAME") or socket.gethostname()),
            standalone=_standalone(found),
            kubeconfig=Path(found.kubeconfig) if found.kubeconfig else None,
            proc_root=Path(found.proc),
            sys_root=Path(found.sys),
            ledger_capacity=_ledger_capacity(found.ledger_capacity),
            log_format=_log_format(found.log_format),
            log_level=_log_level(found.log_level),
            listen=parse_listen(getattr(found, "listen", DEFAULT_LISTEN)),
            tls=_tls(found),
            live=_live(found),
            json=getattr(found, "json", False),
            shell=Shell(found.shell) if hasattr(found, "shell") else None,
        )
    except ValueError as err:
        raise UsageError(str(err)) from err


def _live(found: argparse.Namespace) -> LiveOptions:
    if not hasattr(found, "interval"):
        return LiveOptions()
    return LiveOptions(
        interval_s=_interval_s(found.interval),
        once=found.once,
        json=found.json,
        reasons=found.reasons,
        selection=Selection(
            tgids=frozenset(_tgid(word) for word in _words(found.pid)),
            namespaces=frozenset(_words(found.namespace)),
            types=frozenset(_type(word) for word in _words(found.type)),
        ),
    )


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _interval_s(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not LEAST_INTERVAL_S <= seconds <= MOST_INTERVAL_S:
        raise UsageError(
            f"interval {word!r} is no number of seconds from {LEAST_INTERVAL_S:g} to "
            f"{MOST_INTERVAL_S:g}; give one, such as --interval 2"
        )
    return seconds


def _tgid(word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < int(word) <= TGID_MAX):
        raise UsageError(f"pid {word!r} is no process id; give a number, as ps shows it")
    return int(word)


def _type(word: str) -> HypervisorType:
    if word not in TYPES:
        raise UsageError(f"type {word!r} is not known; give {', '.join(TYPES)}")
    return HypervisorType(word)


def _standalone(found: argparse.Namespace) -> bool | None:
    if found.standalone and found.kubeconfig:
        raise UsageError("--standalone and --kubeconfig exclude each other; give one")
    if found.standalone:
        return True
    return False if found.kubeconfig else None


def _node(name: str) -> str:
    # Bytes that are no UTF-8 come as surrogates, which no label value can hold; control characters
    # and direction marks only ever deceive a reader.
    if not name.isprintable():
        raise UsageError(f"node name {name!a} has unprintable characters; give another by --node")
    return name


def _ledger_capacity(word: str | None) -> int | None:
    if word is None:
        return None
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0
    if not LEAST_LEDGER_CAPACITY <= number <= MOST_LEDGER_CAPACITY:
        raise UsageError(
            f"ledger capacity {word!r} is no number from {LEAST_LEDGER_CAPACITY} to "
            f"{MOST_LEDGER_CAPACITY}; give one, or none for what suits the machine"
        )
    return number


def _log_format(word: str) -> LogFormat:
    if word not in [it.value for it in LogFormat]:
        raise UsageError(f"log format {word!r} is not known; give {' or '.join(LogFormat)}")
    return LogFormat(word)


def _log_level(word: str) -> str:
    if word.upper() not in LEVELS:
        raise UsageError(f"log level {word!r} is not known; give debug, info, warning or error")
    return word.upper()


def _tls(found: argparse.Namespace) -> TlsFiles | None:
    cert, key = getattr(found, "tls_cert", None), getattr(found, "tls_key", None)
    client_ca = getattr(found, "tls_client_ca", None)
    if not cert and not key and not client_ca:
        return None
    if not cert or not key:
        raise UsageError("TLS needs both --tls-cert and --tls-key; give the one that is missing")
    return TlsFiles(
        cert=Path(cert), key=Path(key), client_ca=Path(client_ca) if client_ca else None
    )
