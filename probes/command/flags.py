# SPDX-License-Identifier: Apache-2.0
"""Defines the command line's grammar: commands, flags, their variables and help. Pure.

Every flag has a variable ``HVPROBE_<FLAG>``; a flag takes precedence over its variable. Must not
know which values are valid: values.py decides that.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from probes.host.hypervisors import HypervisorType
from probes.render.live.options import REASONS_COST

DEFAULT_LISTEN = "0.0.0.0:9747"
TYPES = tuple(kind.value for kind in HypervisorType)
TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off", "")


class Command(StrEnum):
    """The commands of hvprobe."""

    AGENT = "agent"
    LIVE = "live"
    SNAPSHOT = "snapshot"
    WHY = "why"
    DOCTOR = "doctor"
    COMPLETION = "completion"


class Shell(StrEnum):
    """The shells for which ``hvprobe completion`` prints a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    TCSH = "tcsh"


class UsageError(Exception):
    """A flag or variable is wrong.

    The message is one line; the exit code is 2.
    """


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as one line and as UsageError, unlike argparse."""

    def error(self, message: str) -> NoReturn:
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


class _Flags:
    """Adds flags, each with its environment variable as default."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment

    def add(self, flag: str, *, metavar: str, default: str | None, text: str) -> None:
        """Add a flag with a value."""
        variable = _variable(flag)
        shown = f"; default {default}" if default else ""
        self._parser.add_argument(
            flag,
            metavar=metavar,
            default=self._environment.get(variable) or default,
            help=f"{text} ({variable}{shown})",
        )

    def add_switch(self, flag: str, *, text: str) -> None:
        """Add a flag that is on or off; its variable says so in words."""
        variable = _variable(flag)
        self._parser.add_argument(
            flag,
            action="store_true",
            default=_SwitchVariable(name=variable, word=self._environment.get(variable, "")),
            help=f"{text} ({variable})",
        )


def _variable(flag: str) -> str:
    return "HVPROBE_" + flag.removeprefix("--").replace("-", "_").upper()


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
    Command.WHY: "  hvprobe why default/alpha\n"
    "  hvprobe why 4711\n"
    "  hvprobe why --json default/alpha | jq -r '.processes[0].remedy'",
    Command.DOCTOR: "  hvprobe doctor\n"
    "  hvprobe doctor && echo verdicts can be verified here\n"
    "  hvprobe doctor --json | jq -r '.checks[] | select(.outcome != \"ok\") | .remedy'",
    Command.COMPLETION: '  eval "$(hvprobe completion bash)"\n'
    "  hvprobe completion zsh > ~/.zfunc/_hvprobe\n"
    "  hvprobe completion fish > ~/.config/fish/completions/hvprobe.fish\n"
    "  hvprobe completion tcsh > ~/.hvprobe.tcsh && echo source ~/.hvprobe.tcsh >> ~/.tcshrc",
}
_SUMMARIES: Mapping[Command, str] = {
    Command.AGENT: "attach the probes and serve /metrics until SIGTERM",
    Command.LIVE: "live view of accelerator use per process, with the evidence",
    Command.SNAPSHOT: "print one report as JSON on stdout",
    Command.WHY: "explain one VM: its type, the evidence, the cause of emulation and the remedy",
    Command.DOCTOR: "report what this node can and cannot prove, with remedies",
    Command.COMPLETION: "print a shell completion script for hvprobe",
}


_EXIT_CODES: Mapping[Command, str] = {
    Command.WHY: "0 accelerated, 3 emulated, 4 unknown, 1 no such VM, 2 wrong usage",
}
"""Exit codes of commands that have their own, for ``--help``."""


def command_line(environment: Mapping[str, str], *, version: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
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
            description=_description(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"examples:\n{_EXAMPLES[command]}",
            allow_abbrev=False,
        )
        if command is Command.COMPLETION:
            sub.add_argument(
                "shell", choices=[shell.value for shell in Shell], help="shell to generate for"
            )
            continue
        flags = _Flags(sub, environment)
        _common_flags(flags, log_level="info" if command is Command.AGENT else "warning")
        if command is Command.AGENT:
            _agent_flags(flags)
        if command is Command.LIVE:
            _live_flags(flags)
        if command is Command.WHY:
            sub.add_argument(
                "subject",
                metavar="NAMESPACE/NAME|PID",
                help="a VM of this node, or the process that runs it",
            )
        if command in (Command.LIVE, Command.WHY, Command.DOCTOR):
            flags.add_switch(
                "--json", text="JSON instead of text; live prints one object per frame"
            )
    return parser


def _description(command: Command) -> str:
    codes = _EXIT_CODES.get(command)
    return f"{_SUMMARIES[command]}\n\nexit codes: {codes}" if codes else _SUMMARIES[command]


def _common_flags(flags: _Flags, *, log_level: str) -> None:
    flags.add(
        "--node",
        metavar="NAME",
        default=None,
        text="this node's name; by default $NODE_NAME or the host name",
    )
    flags.add_switch("--standalone", text="no cluster; name VMs by libvirt's domain names")
    flags.add(
        "--kubeconfig", metavar="FILE", default=None, text="kubeconfig used to reach the API server"
    )
    flags.add("--proc", metavar="DIR", default="/proc", text="the host's /proc")
    flags.add("--sys", metavar="DIR", default="/sys", text="the host's /sys")
    flags.add(
        "--ledger-capacity",
        metavar="N",
        default=None,
        text="capacity of the kernel table in processes, 256 to 65536; by default from memory and "
        "CPUs",
    )
    flags.add(
        "--log-format", metavar="text|json", default="text", text="format of log lines on stderr"
    )
    levels = "debug|info|warning|error"
    flags.add(
        "--log-level", metavar=levels, default=log_level, text="least severe level that is logged"
    )


def _agent_flags(flags: _Flags) -> None:
    flags.add(
        "--listen", metavar="HOST:PORT", default=DEFAULT_LISTEN, text="address and port to serve on"
    )
    flags.add("--tls-cert", metavar="FILE", default=None, text="serve HTTPS with this certificate")
    flags.add("--tls-key", metavar="FILE", default=None, text="private key of the certificate")
    flags.add(
        "--tls-client-ca",
        metavar="FILE",
        default=None,
        text="require client certificates issued by these CAs, except for /healthz and /readyz",
    )
    flags.add_switch(
        "--vcpu-stats",
        text="export exits by class, halt polling, nested guest runs and guest CPU time of VMs",
    )
    flags.add_switch(
        "--events",
        text="write a Kubernetes Event on each VM that turns out emulated without need, and when "
        "that ends; needs a cluster",
    )


def _live_flags(flags: _Flags) -> None:
    flags.add("--interval", metavar="SECONDS", default="1", text="refresh interval")
    flags.add_switch("--once", text="print one frame and exit")
    flags.add_switch("--reasons", text=f"show VM exits by reason; {REASONS_COST}")
    flags.add("--pid", metavar="PID[,PID]", default=None, text="show only these processes")
    flags.add(
        "--namespace", metavar="NAME[,NAME]", default=None, text="show only VMs of these namespaces"
    )
    flags.add(
        "--type",
        metavar="|".join(TYPES),
        default=None,
        text="show only these types; comma-separated",
    )
