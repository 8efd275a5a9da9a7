# SPDX-License-Identifier: Apache-2.0
"""Defines the grammar of ``hvprobe fleet``, which is ``kubectl hvprobe``: commands and flags. Pure.

The variables of its flags begin with ``HVPROBE_FLEET_``, because an administrator's machine is no
node: ``HVPROBE_NODE`` names the node of the other commands. Must not know which values are valid.
"""

import argparse
from collections.abc import Mapping, Sequence
from enum import StrEnum

from probes.command.arguments import Flags
from probes.fleet.options import DEFAULT_ACCOUNT, DEFAULT_NAMESPACE, DEFAULT_SELECTOR, Form
from probes.judge.cause import Cause

PREFIX = "HVPROBE_FLEET_"
DEFAULT_TIMEOUT = "5"
DEFAULT_PARALLEL = "16"
MANY = "comma-separated"
"""Stands in the help of each flag that takes several of its choices."""


class FleetCommand(StrEnum):
    """The commands of ``hvprobe fleet``; the first one is the default."""

    VMIS = "vmis"
    NODES = "nodes"
    WHY = "why"
    DOCTOR = "doctor"


_SWITCHES = frozenset({"-h", "--help", "-v", "--verbose", "--version"})
"""The flags that take no value."""
_SUMMARIES: Mapping[FleetCommand, str] = {
    FleetCommand.VMIS: "one row for each VM of the cluster, trouble first (the default)",
    FleetCommand.NODES: "one row for each node: accelerator, hooks, agent, VMs by type",
    FleetCommand.WHY: "explain one VM, in the words of its node's agent",
    FleetCommand.DOCTOR: "what is wrong with each node, and the remedy",
}
_CODES: Mapping[FleetCommand, str] = {
    FleetCommand.VMIS: "3 a node is missing, 4 --fail-on matches",
    FleetCommand.NODES: "3 a node is missing",
    FleetCommand.WHY: "1 no such VM, 3 its node is missing, 4 --fail-on matches",
    FleetCommand.DOCTOR: "3 a node is missing, 4 verdicts cannot be verified on a node",
}
_EXAMPLES: Mapping[FleetCommand, str] = {
    FleetCommand.VMIS: "  kubectl hvprobe\n"
    "  kubectl hvprobe -n default,payroll --type tcg,unknown -o wide\n"
    "  kubectl hvprobe vmis --fail-on tcg,unknown || echo not every VM is accelerated\n"
    "  kubectl hvprobe -o json | jq -r '.vmis[] | select(.fallback) | .remedy'",
    FleetCommand.NODES: "  kubectl hvprobe nodes\n  kubectl hvprobe nodes -o csv > nodes.csv",
    FleetCommand.WHY: "  kubectl hvprobe why default/alpha\n"
    "  kubectl hvprobe why default/alpha -o json | jq -r .summary",
    FleetCommand.DOCTOR: "  kubectl hvprobe doctor\n  kubectl hvprobe doctor -v --node worker-1",
}


def with_command(arguments: Sequence[str]) -> list[str]:
    """Return the words after ``fleet`` with the command first, the default one if none is named.

    Flags may stand before it, as in ``kubectl hvprobe --context prod nodes``, because kubectl takes
    none before the plugin's name.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        return [*arguments]
    at = _operand_at(arguments)
    if at is not None and arguments[at] in [command.value for command in FleetCommand]:
        return [arguments[at], *arguments[:at], *arguments[at + 1 :]]
    return [FleetCommand.VMIS.value, *arguments]


def _operand_at(arguments: Sequence[str]) -> int | None:
    """Return where the first word is that is no flag and no value of one; None: there is none."""
    of_flag = False
    for at, word in enumerate(arguments):
        if not word.startswith("-") and not of_flag:
            return at
        alone = word.startswith("--") or len(word) == len("-o")
        of_flag = not of_flag and alone and "=" not in word and word not in _SWITCHES
    return None


def add_fleet(
    parser: argparse.ArgumentParser, environment: Mapping[str, str], *, types: Sequence[str]
) -> None:
    """Add the commands of ``hvprobe fleet`` to its parser."""
    commands = parser.add_subparsers(dest="fleet_command", required=True, metavar="COMMAND")
    for command in FleetCommand:
        sub = commands.add_parser(
            command.value,
            help=_SUMMARIES[command],
            description=f"{_SUMMARIES[command]}\n\n"
            f"exit codes: 0 fine, 1 failed, 2 wrong usage, {_CODES[command]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"examples:\n{_EXAMPLES[command]}",
            allow_abbrev=False,
        )
        flags = Flags(sub, environment, prefix=PREFIX)
        if command is FleetCommand.WHY:
            sub.add_argument("subject", metavar="NAMESPACE/NAME", help="a VM of the cluster")
        else:
            flags.add(
                "--node", metavar="NAME[,NAME]", default=None, text="only these nodes are asked"
            )
        if command is FleetCommand.VMIS:
            _vm_flags(flags, types)
        if command in (FleetCommand.VMIS, FleetCommand.WHY):
            flags.add(
                "--fail-on",
                metavar="|".join(types),
                default=None,
                text=f"exit code 4 if a VM that is shown has one of these types; {MANY}",
            )
        if command is FleetCommand.DOCTOR:
            flags.add_switch("--verbose", short="-v", text="also show what is fine")
        _output_flag(flags, command)
        _reach_flags(flags)


def _output_flag(flags: Flags, command: FleetCommand) -> None:
    forms = [Form.JSON] if command in (FleetCommand.WHY, FleetCommand.DOCTOR) else [*Form]
    flags.add(
        "--output",
        short="-o",
        metavar="|".join(form for form in forms if form is not Form.TABLE),
        default=None,
        text="another form than text for a person",
    )


def _vm_flags(flags: Flags, types: Sequence[str]) -> None:
    flags.add(
        "--namespace",
        short="-n",
        metavar="NAME[,NAME]",
        default=None,
        text="show only VMs of these namespaces; all by default",
    )
    flags.add(
        "--type",
        metavar="|".join(types),
        default=None,
        text=f"show only these types; {MANY}",
    )
    flags.add(
        "--cause",
        metavar="|".join(cause.value for cause in Cause),
        default=None,
        text=f"show only VMs that are emulated for one of these causes; {MANY}",
    )


def _reach_flags(flags: Flags) -> None:
    flags.add(
        "--kubeconfig",
        metavar="FILE",
        default=None,
        text="kubeconfig; by default $KUBECONFIG, ~/.kube/config or the pod's service account",
    )
    flags.add(
        "--context", metavar="NAME", default=None, text="context of the kubeconfig that is used"
    )
    flags.add(
        "--agent-namespace",
        metavar="NAME",
        default=None,
        text=f"namespace of the agents; by default {DEFAULT_NAMESPACE}, or if none is there the "
        "only one that has any",
    )
    flags.add(
        "--agent-selector",
        metavar="SELECTOR",
        default=DEFAULT_SELECTOR,
        text="label selector of the agents' pods",
    )
    flags.add(
        "--agent-account",
        metavar="NAME",
        default=DEFAULT_ACCOUNT,
        text="service account in the agents' namespace, whose token agents get that want one",
    )
    flags.add(
        "--timeout", metavar="SECONDS", default=DEFAULT_TIMEOUT, text="how long a node may take"
    )
    flags.add(
        "--parallel",
        metavar="N",
        default=DEFAULT_PARALLEL,
        text="how many nodes are asked at the same time, 1 to 64",
    )
