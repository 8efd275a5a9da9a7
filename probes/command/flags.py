# SPDX-License-Identifier: Apache-2.0
"""Defines the command line's grammar: commands, flags, their variables and help. Pure.

Every flag has a variable ``HVPROBE_<FLAG>``; a flag takes precedence over its variable. The flags
of ``fleet`` are in fleet_flags.py. Must not know which values are valid: values.py decides that.
"""

import argparse
from collections.abc import Mapping
from enum import StrEnum

from probes.command.arguments import Flags, Parser, UsageError, parsed
from probes.command.fleet_flags import add_fleet
from probes.host.hypervisors import HypervisorType
from probes.render.live.options import REASONS_COST

__all__ = ["UsageError", "command_line", "parsed"]

DEFAULT_LISTEN = "0.0.0.0:9747"
TYPES = tuple(kind.value for kind in HypervisorType)


class Command(StrEnum):
    """The commands of hvprobe."""

    AGENT = "agent"
    LIVE = "live"
    SNAPSHOT = "snapshot"
    WHY = "why"
    DOCTOR = "doctor"
    FLEET = "fleet"
    COMPLETION = "completion"


class Authorizing(StrEnum):
    """What ``hvprobe agent`` asks of clients beside a certificate."""

    NONE = "none"
    KUBERNETES = "kubernetes"
    """A bearer token that the API server reviews."""


class Shell(StrEnum):
    """The shells for which ``hvprobe completion`` prints a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    TCSH = "tcsh"


_EXAMPLES: Mapping[Command, str] = {
    Command.AGENT: "  hvprobe agent --standalone\n"
    "  hvprobe agent --listen '[::]:9747' --log-format json\n"
    "  hvprobe agent --tls-cert tls.crt --tls-key tls.key --authorization kubernetes\n"
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
    Command.FLEET: "  kubectl hvprobe\n"
    "  kubectl hvprobe nodes -o wide\n"
    "  kubectl hvprobe why default/alpha\n"
    "  hvprobe fleet --type tcg,unknown -o csv",
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
    Command.FLEET: "show the VMs and nodes of a whole cluster, from any machine: kubectl hvprobe",
    Command.COMPLETION: "print a shell completion script for hvprobe",
}


_EXIT_CODES: Mapping[Command, str] = {
    Command.WHY: "0 accelerated, 3 emulated, 4 unknown, 1 no such VM, 2 wrong usage",
}
"""Exit codes of commands that have their own, for ``--help``."""


def command_line(environment: Mapping[str, str], *, version: str) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
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
        _command_flags(command, sub, environment)
    return parser


def _command_flags(
    command: Command, sub: argparse.ArgumentParser, environment: Mapping[str, str]
) -> None:
    """Add the flags of one command to its parser."""
    if command is Command.COMPLETION:
        sub.add_argument(
            "shell", choices=[shell.value for shell in Shell], help="shell to generate for"
        )
        return
    if command is Command.FLEET:
        add_fleet(sub, environment, types=TYPES)
        return
    flags = Flags(sub, environment)
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
        flags.add_switch("--json", text="JSON instead of text; live prints one object per frame")


def _description(command: Command) -> str:
    codes = _EXIT_CODES.get(command)
    return f"{_SUMMARIES[command]}\n\nexit codes: {codes}" if codes else _SUMMARIES[command]


def _common_flags(flags: Flags, *, log_level: str) -> None:
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


def _agent_flags(flags: Flags) -> None:
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
    flags.add(
        "--authorization",
        metavar="|".join(Authorizing),
        default=Authorizing.NONE.value,
        text="kubernetes: require a bearer token whose user may get the path, as the API server "
        "decides, or a client certificate, except for /healthz and /readyz; needs a cluster",
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


def _live_flags(flags: Flags) -> None:
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
