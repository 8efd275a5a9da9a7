# SPDX-License-Identifier: Apache-2.0
"""Turns a command line and variables into the settings of one command. Pure.

Owns which settings each command has and which flags exclude each other. Must not know which value
of one flag is valid (values.py), nor open, resolve or start anything: inputs.py checks that files
and folders exist.
"""

import argparse
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from probes.command import values
from probes.command.flags import (
    Authorizing,
    Command,
    Shell,
    UsageError,
    command_line,
    parsed,
)
from probes.command.fleet_flags import with_command
from probes.command.fleet_settings import FleetSettings, fleet_settings
from probes.render.live.options import LiveOptions, Selection
from probes.report.why import Subject
from probes.serve.listen import Listen, TlsFiles

EXIT_USAGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a user can set for every command that reads the node."""

    version: str
    """Version of hvprobe."""
    node: str
    """Name of this node, which is the label ``node`` of every series."""
    standalone: bool | None
    """True: no cluster; False: a cluster; None: a cluster if a service account is mounted."""
    kubeconfig: Path | None
    proc_root: Path
    sys_root: Path
    ledger_capacity: int | None
    """Processes that the kernel table has room for; None: a default for the machine's size."""
    log_format: values.LogFormat
    log_level: str

    @property
    def refreshes_once(self) -> bool:
        """Whether the command refreshes only once, so that VM names that arrive later are lost."""
        return True

    @property
    def reads_vcpu_statistics(self) -> bool:
        """Whether it reads more of KVM's statistics than exits, and the CPU time in guest code."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings(NodeSettings):
    """Settings of ``hvprobe agent``."""

    listen: Listen
    tls: TlsFiles | None
    authorization: Authorizing = Authorizing.NONE
    vcpu_stats: bool = False
    events: bool = False
    """Whether it writes Kubernetes Events."""

    @property
    def reads_vcpu_statistics(self) -> bool:
        """Whether it reads them: with ``--vcpu-stats``, because each makes series."""
        return self.vcpu_stats

    @property
    def refreshes_once(self) -> bool:
        """Whether the command refreshes only once: never, because the agent keeps serving."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings(NodeSettings):
    """Settings of ``hvprobe live``."""

    live: LiveOptions

    @property
    def refreshes_once(self) -> bool:
        """Whether the command refreshes only once: with ``--once``."""
        return self.live.once

    @property
    def reads_vcpu_statistics(self) -> bool:
        """Whether it reads them: always, because it shows them."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSettings(NodeSettings):
    """Settings of ``hvprobe snapshot``."""

    @property
    def reads_vcpu_statistics(self) -> bool:
        """Whether it reads them: always, because it prints everything that is known."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class WhySettings(NodeSettings):
    """Settings of ``hvprobe why``."""

    subject: Subject
    json: bool

    @property
    def reads_vcpu_statistics(self) -> bool:
        """Whether it reads them: always, because it prints everything that is known."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSettings(NodeSettings):
    """Settings of ``hvprobe doctor``."""

    json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSettings:
    """Settings of ``hvprobe completion``, which does not read the node."""

    shell: Shell


Settings = (
    AgentSettings
    | LiveSettings
    | SnapshotSettings
    | WhySettings
    | DoctorSettings
    | CompletionSettings
    | FleetSettings
)


class _Common(TypedDict):
    """The fields of NodeSettings."""

    version: str
    node: str
    standalone: bool | None
    kubeconfig: Path | None
    proc_root: Path
    sys_root: Path
    ledger_capacity: int | None
    log_format: values.LogFormat
    log_level: str


def parse(arguments: Sequence[str], environment: Mapping[str, str], *, version: str) -> Settings:
    """Parse a command line into settings; ``--help`` and ``--version`` exit.

    Raises UsageError when a flag or a variable is wrong.
    """
    if [*arguments] == [Command.FLEET.value, "--version"]:
        arguments = ["--version"]  # of the plugin: kubectl hvprobe --version
    if [*arguments[:1]] == [Command.FLEET.value]:
        arguments = [Command.FLEET.value, *with_command(arguments[1:])]
    found = parsed(command_line(environment, version=version), [*arguments])
    match Command(found.command):
        case Command.COMPLETION:
            return CompletionSettings(shell=Shell(found.shell))
        case Command.FLEET:
            return fleet_settings(found, environment, version=version)
        case Command.AGENT:
            common = _common(found, environment, version)
            return AgentSettings(
                **common,
                listen=values.listen(found.listen),
                tls=_tls(found),
                authorization=_authorization(found),
                vcpu_stats=found.vcpu_stats,
                events=_events(found),
            )
        case Command.LIVE:
            return LiveSettings(**_common(found, environment, version), live=_live(found))
        case Command.SNAPSHOT:
            return SnapshotSettings(**_common(found, environment, version))
        case Command.WHY:
            common = _common(found, environment, version)
            return WhySettings(**common, subject=values.subject(found.subject), json=found.json)
        case Command.DOCTOR:
            return DoctorSettings(**_common(found, environment, version), json=found.json)


def _common(found: argparse.Namespace, environment: Mapping[str, str], version: str) -> _Common:
    return _Common(
        version=version,
        node=values.node(found.node or environment.get("NODE_NAME") or socket.gethostname()),
        standalone=_standalone(found),
        kubeconfig=Path(found.kubeconfig) if found.kubeconfig else None,
        proc_root=Path(found.proc),
        sys_root=Path(found.sys),
        ledger_capacity=values.ledger_capacity(found.ledger_capacity),
        log_format=values.log_format(found.log_format),
        log_level=values.log_level(found.log_level),
    )


def _live(found: argparse.Namespace) -> LiveOptions:
    return LiveOptions(
        interval_s=values.interval_s(found.interval),
        once=found.once,
        json=found.json,
        reasons=found.reasons,
        selection=Selection(
            tgids=frozenset(values.tgid(word) for word in _words(found.pid)),
            namespaces=frozenset(_words(found.namespace)),
            types=frozenset(values.hypervisor_type(word) for word in _words(found.type)),
        ),
    )


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _standalone(found: argparse.Namespace) -> bool | None:
    if found.standalone and found.kubeconfig:
        raise UsageError("--standalone and --kubeconfig exclude each other; give one")
    if found.standalone:
        return True
    return False if found.kubeconfig else None


def _events(found: argparse.Namespace) -> bool:
    if found.events and found.standalone:
        raise UsageError(
            "--events and --standalone exclude each other, because Events are written to a "
            "cluster's API server; give one"
        )
    return bool(found.events)


def _authorization(found: argparse.Namespace) -> Authorizing:
    wanted = values.authorization(found.authorization)
    if wanted is Authorizing.KUBERNETES and found.standalone:
        raise UsageError(
            "--authorization kubernetes and --standalone exclude each other, because a cluster's "
            "API server reviews the tokens; give one"
        )
    return wanted


def _tls(found: argparse.Namespace) -> TlsFiles | None:
    cert, key, client_ca = found.tls_cert, found.tls_key, found.tls_client_ca
    if not cert and not key and not client_ca:
        return None
    if not cert or not key:
        raise UsageError("TLS needs both --tls-cert and --tls-key; give the one that is missing")
    return TlsFiles(
        cert=Path(cert), key=Path(key), client_ca=Path(client_ca) if client_ca else None
    )
