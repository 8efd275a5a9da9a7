# SPDX-License-Identifier: Apache-2.0
"""Turns the command line of ``hvprobe fleet`` into its settings. Pure.

Must not open anything, nor know whether files exist.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.command import values
from probes.command.arguments import UsageError
from probes.command.fleet_flags import FleetCommand
from probes.fleet.options import Form, Selection
from probes.host.hypervisors import HypervisorType
from probes.judge.cause import Cause
from probes.vmi.attribution import VmName

MIN_TIMEOUT_S = 0.1
MAX_TIMEOUT_S = 600.0
MAX_PARALLEL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Settings of ``hvprobe fleet``, which reads no node itself."""

    version: str
    """Version of this hvprobe."""
    command: FleetCommand
    kubeconfig: Path | None
    """None: where kubectl looks for one."""
    context: str | None
    agent_namespace: str | None
    agent_selector: str
    agent_account: str
    timeout_s: float
    parallel: int
    form: Form
    selection: Selection
    fail_on: frozenset[HypervisorType]
    subject: VmName | None
    """The VM that ``why`` is asked about; None: another command."""
    verbose: bool


def fleet_settings(
    found: argparse.Namespace, environment: Mapping[str, str], *, version: str
) -> FleetSettings:
    """Make the settings. Raises UsageError when a flag or a variable is wrong."""
    command = FleetCommand(found.fleet_command)
    kubeconfig = found.kubeconfig or environment.get("KUBECONFIG")
    return FleetSettings(
        version=version,
        command=command,
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
        context=found.context,
        agent_namespace=found.agent_namespace,
        agent_selector=found.agent_selector,
        agent_account=found.agent_account,
        timeout_s=_timeout_s(found.timeout),
        parallel=_parallel(found.parallel),
        form=_form(found.output, command),
        selection=Selection(
            namespaces=_words(found, "namespace"),
            types=_types(found, "type"),
            nodes=_words(found, "node"),
            causes=frozenset(_cause(word) for word in _words(found, "cause")),
        ),
        fail_on=_types(found, "fail_on"),
        subject=_subject(found.subject) if command is FleetCommand.WHY else None,
        verbose=getattr(found, "verbose", False),
    )


def _words(found: argparse.Namespace, flag: str) -> frozenset[str]:
    """Return the words of a flag; empty where the command has no such flag."""
    text: str = getattr(found, flag, None) or ""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _types(found: argparse.Namespace, flag: str) -> frozenset[HypervisorType]:
    return frozenset(values.hypervisor_type(word) for word in _words(found, flag))


def _cause(word: str) -> str:
    known = [cause.value for cause in Cause]
    if word not in known:
        raise UsageError(f"cause {word!a} is not known; give {', '.join(known)}")
    return word


def _subject(word: str) -> VmName:
    subject = values.subject(word)
    if not isinstance(subject, VmName):
        raise UsageError(f"{word!a} is not NAMESPACE/NAME; give one, such as default/alpha")
    return subject


def _form(word: str | None, command: FleetCommand) -> Form:
    if word is None:
        return Form.TABLE
    few = command in (FleetCommand.WHY, FleetCommand.DOCTOR)
    known = [Form.JSON.value] if few else [form.value for form in Form]
    if word not in known:
        raise UsageError(f"output {word!a} is not known; give {' or '.join(known)}")
    return Form(word)


def _timeout_s(word: str) -> float:
    seconds = values.number(word)
    if not MIN_TIMEOUT_S <= seconds <= MAX_TIMEOUT_S:
        raise UsageError(
            f"timeout {word!a} is not a number of seconds from {MIN_TIMEOUT_S:g} to "
            f"{MAX_TIMEOUT_S:g}; give one, such as --timeout 10"
        )
    return seconds


def _parallel(word: str) -> int:
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 4 else 0
    if not 1 <= number <= MAX_PARALLEL:
        raise UsageError(f"{word!a} is not a number of nodes from 1 to {MAX_PARALLEL}; give one")
    return number
