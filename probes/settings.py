"""The command line and its environment variables → Settings. Pure.

Every flag has a variable ``HVPROBE_<FLAG>``; a flag wins over its variable. Must not open, resolve
or start anything.
"""

import argparse
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from probes.completion import Shell
from probes.http.listen import Listen, parse_listen
from probes.http.server import TlsFiles
from probes.live.rows import REASONS_COST, LiveOptions, Selection
from probes.vmm import HypervisorType

DEFAULT_LISTEN = "0.0.0.0:9747"
LEAST_INTERVAL_S = 0.1
MOST_INTERVAL_S = 86400.0
TGID_MAX = 1 << 22
"""Linux numbers no process higher (include/linux/threads.h, PID_MAX_LIMIT)."""
EXIT_USAGE = 2


class Command(StrEnum):
    """What hvprobe is asked to do."""

    AGENT = "agent"
    LIVE = "live"
    SNAPSHOT = "snapshot"
    DOCTOR = "doctor"
    COMPLETION = "completion"


class LogFormat(StrEnum):
    """Form of the log lines on stderr."""

    TEXT = "text"
    JSON = "json"


class UsageError(Exception):
    """A wrong flag or variable: one line, exit code 2."""


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
    log_format: LogFormat
    log_level: str
    listen: Listen
    tls: TlsFiles | None
    live: LiveOptions
    json: bool
    """Whether ``doctor`` and ``live`` are to print JSON."""
    shell: Shell | None
    """Whose completion script is wanted; None: another command."""


def parse(arguments: Sequence[str], environment: Mapping[str, str], *, version: str) -> Settings:
    """Settings of a command line. Raises UsageError; ``--help`` and ``--version`` exit."""
    parser = command_line(environment, version=version)
    found = parser.parse_args(arguments)
    try:
        return Settings(
            command=Command(found.command),
            node=_node(found.node or environment.get("NODE_NAME") or socket.gethostname()),
            standalone=_standalone(found),
            kubeconfig=Path(found.kubeconfig) if found.kubeconfig else None,
            proc_root=Path(found.proc),
            sys_root=Path(found.sys),
            log_format=LogFormat(found.log_format),
            log_level=_log_level(found.log_level),
            listen=parse_listen(getattr(found, "listen", DEFAULT_LISTEN)),
            tls=_tls(found),
            live=_live(found),
            json=getattr(found, "json", False),
            shell=Shell(found.shell) if hasattr(found, "shell") else None,
        )
    except ValueError as err:
        raise UsageError(str(err)) from err


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong usage is one line and an exception of ours."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())}; see {self.prog} --help")


class _Flags:
    """Adds flags, each with its environment variable as default."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment

    def add(self, flag: str, *, metavar: str, default: str | None, text: str) -> None:
        """A flag with a value."""
        variable = "HVPROBE_" + flag.removeprefix("--").replace("-", "_").upper()
        shown = f"; default {default}" if default else ""
        self._parser.add_argument(
            flag,
            metavar=metavar,
            default=self._environment.get(variable) or default,
            help=f"{text} ({variable}{shown})",
        )

    def add_switch(self, flag: str, *, text: str) -> None:
        """A flag that is on or off; its variable is on with 1, true or yes."""
        variable = "HVPROBE_" + flag.removeprefix("--").replace("-", "_").upper()
        self._parser.add_argument(
            flag,
            action="store_true",
            default=self._environment.get(variable, "").lower() in ("1", "true", "yes"),
            help=f"{text} ({variable})",
        )


_EXAMPLES: Mapping[Command, str] = {
    Command.AGENT: "  hvprobe agent --standalone\n"
    "  hvprobe agent --listen '[::]:9747' --log-format json\n"
    "  curl -s localhost:9747/metrics | grep kubevirt_vmi_hypervisor_info",
    Command.LIVE: "  hvprobe live\n"
    "  hvprobe live --once --type tcg,unknown\n"
    "  hvprobe live --reasons --pid 4711\n"
    "  hvprobe live --json --interval 5 | jq -c '.vmis[] | select(.fallback)'",
    Command.SNAPSHOT: "  hvprobe snapshot --standalone\n"
    "  hvprobe snapshot | jq '.vmis[] | select(.fallback)'",
    Command.DOCTOR: "  hvprobe doctor\n"
    "  hvprobe doctor && echo verdicts can be verified here\n"
    "  hvprobe doctor --json | jq -r '.checks[] | select(.outcome != \"ok\") | .remedy'",
    Command.COMPLETION: '  eval "$(hvprobe completion bash)"\n'
    "  hvprobe completion zsh > ~/.zfunc/_hvprobe",
}
_SUMMARIES: Mapping[Command, str] = {
    Command.AGENT: "attach the probes and serve /metrics until SIGTERM",
    Command.LIVE: "which processes use the accelerator, how much, and why that is believed; live",
    Command.SNAPSHOT: "one report as JSON on stdout",
    Command.DOCTOR: "what this node can prove, what it cannot, and the remedy",
    Command.COMPLETION: "print a script that makes the shell complete hvprobe's commands and flags",
}


_NOTHING_SET: Mapping[str, str | bool | None] = {
    "node": None,
    "standalone": False,
    "kubeconfig": None,
    "proc": "/proc",
    "sys": "/sys",
    "log_format": "text",
    "log_level": "warning",
}
"""The common flags of a command that has none."""


def command_line(environment: Mapping[str, str], *, version: str) -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="hvprobe",
        description="Proves, from the kernel, which hypervisor every KubeVirt VM really runs on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  hvprobe doctor\n  hvprobe agent --standalone\n  hvprobe live",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hvprobe {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in Command:
        sub = commands.add_parser(
            command.value,
            help=_SUMMARIES[command],
            description=_SUMMARIES[command],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"examples:\n{_EXAMPLES[command]}",
            allow_abbrev=False,
        )
        if command is Command.COMPLETION:
            sub.add_argument("shell", choices=[it.value for it in Shell], help="whose script")
            sub.set_defaults(**_NOTHING_SET)
            continue
        flags = _Flags(sub, environment)
        _common_flags(flags, log_level="info" if command is Command.AGENT else "warning")
        if command is Command.AGENT:
            _agent_flags(flags)
        if command is Command.LIVE:
            _live_flags(flags)
        if command in (Command.LIVE, Command.DOCTOR):
            flags.add_switch("--json", text="JSON instead of text; live: one object a frame")
    return parser


def _common_flags(flags: _Flags, *, log_level: str) -> None:
    flags.add(
        "--node", metavar="NAME", default=None, text="this node's name; $NODE_NAME, else host"
    )
    flags.add_switch("--standalone", text="no cluster: name VMs from libvirt's domain names")
    flags.add("--kubeconfig", metavar="FILE", default=None, text="reach the API server with this")
    flags.add("--proc", metavar="DIR", default="/proc", text="the host's /proc")
    flags.add("--sys", metavar="DIR", default="/sys", text="the host's /sys")
    flags.add("--log-format", metavar="text|json", default="text", text="log lines on stderr")
    levels = "debug|info|warning|error"
    flags.add("--log-level", metavar=levels, default=log_level, text="what is logged on stderr")


def _agent_flags(flags: _Flags) -> None:
    flags.add("--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN, text="serve here")
    flags.add("--tls-cert", metavar="FILE", default=None, text="serve HTTPS with this certificate")
    flags.add("--tls-key", metavar="FILE", default=None, text="its private key")
    flags.add("--tls-client-ca", metavar="FILE", default=None, text="demand client certificates")


def _live_flags(flags: _Flags) -> None:
    flags.add("--interval", metavar="SECONDS", default="1", text="refresh so often")
    flags.add_switch("--once", text="print one frame and exit")
    flags.add_switch("--reasons", text=f"show VM exits by reason; {REASONS_COST}")
    flags.add("--pid", metavar="PID[,PID]", default=None, text="only these processes")
    flags.add("--namespace", metavar="NAME[,NAME]", default=None, text="only VMs of these")
    flags.add("--type", metavar="|".join(TYPES), default=None, text="only these types; comma lists")


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


LEVELS = frozenset({"DEBUG", "INFO", "WARNING", "ERROR"})
TYPES = tuple(kind.value for kind in HypervisorType)
