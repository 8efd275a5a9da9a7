# SPDX-License-Identifier: Apache-2.0
"""The command line of ``hvprobe fleet``: its default command, its variables, wrong usage."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.command.flags import UsageError
from probes.command.fleet_flags import FleetCommand
from probes.command.fleet_settings import FleetSettings
from probes.command.settings import parse
from probes.fleet.options import Form
from probes.host.hypervisors import HypervisorType
from probes.vmi.attribution import VmName


def settings(*words: str, **environment: str) -> FleetSettings:
    found = parse(["fleet", *words], environment, version="1")
    assert isinstance(found, FleetSettings)
    return found


def test_defaults() -> None:
    """Without a command it shows VMs: all of them, as a table, wherever kubectl would look."""
    found = settings()
    assert found.command is FleetCommand.VMIS
    assert (found.form, found.fail_on, found.kubeconfig) == (Form.TABLE, frozenset(), None)
    assert (found.timeout_s, found.parallel) == (5, 16)
    assert (found.agent_namespace, found.agent_account) == (None, "hvprobe-fleet")
    assert found.agent_selector == "app.kubernetes.io/name=hvprobe"


def test_the_default_command_takes_its_flags() -> None:
    """Flags that begin the line belong to ``vmis``."""
    found = settings("-n", "a, b", "--type", "tcg,unknown", "--cause", "unknown", "-o", "wide")
    assert found.command is FleetCommand.VMIS
    assert found.selection.namespaces == {"a", "b"}
    assert found.selection.types == {HypervisorType.TCG, HypervisorType.UNKNOWN}
    assert found.selection.causes == {"unknown"}
    assert found.form is Form.WIDE


def test_commands() -> None:
    """Each has its own flags."""
    assert settings("nodes", "--node", "n1").selection.nodes == {"n1"}
    assert settings("why", "default/alpha").subject == VmName(namespace="default", name="alpha")
    assert settings("doctor", "-v").verbose


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--context", "prod", "nodes"], FleetCommand.NODES),
        (["--context=prod", "nodes"], FleetCommand.NODES),
        (["-ojson", "--context", "prod", "nodes"], FleetCommand.NODES),
        (["-v", "doctor", "--context", "prod"], FleetCommand.DOCTOR),
        (["--context", "prod", "-n", "nodes"], FleetCommand.VMIS),
        (["-n", "nodes", "--context", "prod"], FleetCommand.VMIS),
    ],
)
def test_flags_may_stand_before_the_command(words: list[str], command: FleetCommand) -> None:
    """kubectl takes no flag before the plugin's name; a flag's value is no command."""
    found = settings(*words)
    assert (found.command, found.context) == (command, "prod")


def test_the_version_of_the_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    """``kubectl hvprobe --version`` prints it."""
    with pytest.raises(SystemExit) as ended:
        settings("--version")
    assert (ended.value.code, capsys.readouterr().out) == (0, "hvprobe 1\n")


def test_variables() -> None:
    """They have a prefix of their own, so a node's variables do not filter a cluster."""
    found = settings(HVPROBE_NODE="n1", HVPROBE_FLEET_TIMEOUT="9", KUBECONFIG="/a:/b")
    assert found.selection.nodes == frozenset()
    assert found.timeout_s == 9
    assert found.kubeconfig == Path("/a:/b")
    assert settings(HVPROBE_FLEET_KUBECONFIG="/c", KUBECONFIG="/a").kubeconfig == Path("/c")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--type", "xen"], "type 'xen' is not known"),
        (["--fail-on", "xen"], "type 'xen' is not known"),
        (["--cause", "magic"], "cause 'magic' is not known; give cross_architecture"),
        (["-o", "yaml"], "output 'yaml' is not known; give table or wide or json or csv"),
        (["why", "default/alpha", "-o", "csv"], "output 'csv' is not known; give json"),
        (["why", "4711"], "'4711' is not NAMESPACE/NAME"),
        (["why"], "NAMESPACE/NAME"),
        (["--timeout", "0"], "timeout '0' is not a number of seconds from 0.1 to 600"),
        (["--timeout", "nan"], "timeout 'nan'"),
        (["--parallel", "65"], "'65' is not a number of nodes from 1 to 64"),
        (["nodes", "-n", "default"], "unrecognized arguments: -n default"),
        (["nodse"], "unrecognized arguments: nodse"),
    ],
)
def test_wrong_usage(words: list[str], line: str) -> None:
    """It is one line that says what is right."""
    with pytest.raises(UsageError) as caught:
        settings(*words)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
