# SPDX-License-Identifier: Apache-2.0
"""Flags of ``live``, ``doctor`` and ``completion``, and their variables."""

import pytest

from probes.command.flags import Shell, UsageError
from probes.command.settings import (
    CompletionSettings,
    DoctorSettings,
    LiveSettings,
    Settings,
    parse,
)
from probes.host.hypervisors import HypervisorType
from probes.render.live.options import LiveOptions, Selection


def settings(*arguments: str, **environment: str) -> Settings:
    return parse(arguments, environment, version="1.2.3")


def live(*arguments: str, **environment: str) -> LiveOptions:
    found = settings("live", *arguments, **environment)
    assert isinstance(found, LiveSettings)
    assert found.refreshes_once is found.live.once
    return found.live


def test_defaults() -> None:
    """By default the view shows everything, once a second, until the user ends it."""
    assert live() == LiveOptions(
        interval_s=1.0, once=False, json=False, reasons=False, selection=Selection()
    )


def test_flags() -> None:
    """Each flag sets its option, and commas separate the items of a list."""
    found = live(
        *("--once", "--json", "--reasons", "--interval", "0.5", "--pid", "1,4194304"),
        *("--namespace", "default, lab", "--type", "tcg,unknown"),
    )
    assert found == LiveOptions(
        interval_s=0.5,
        once=True,
        json=True,
        reasons=True,
        selection=Selection(
            tgids=frozenset({1, 4194304}),
            namespaces=frozenset({"default", "lab"}),
            types=frozenset({HypervisorType.TCG, HypervisorType.UNKNOWN}),
        ),
    )


def test_variables() -> None:
    """Each flag has a variable with the same meaning, which the flag overrides."""
    found = live(HVPROBE_INTERVAL="3", HVPROBE_ONCE="1", HVPROBE_TYPE="kvm")
    assert (found.interval_s, found.once) == (3.0, True)
    assert found.selection.types == {HypervisorType.KVM}
    assert live("--interval", "4", HVPROBE_INTERVAL="3").interval_s == 4.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--interval", "0"), "interval"),
        (("--interval", "nan"), "nan"),
        (("--interval", "-1"), "interval"),
        (("--interval", "soon"), "soon"),
        (("--interval", "1e9"), "86400"),
        (("--pid", "qemu"), "qemu"),
        (("--pid", "0"), "pid"),
        (("--pid", "٤"), "pid"),
        (("--pid", "4194305"), "4194305"),
        (("--type", "xen"), "kvm, tcg, mshv, unknown"),
        (("--once=yes",), "--once"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], says: str) -> None:
    """The error of wrong usage is one line that names the mistake."""
    with pytest.raises(UsageError) as caught:
        settings("live", *arguments)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("command", ["live", "completion"])
def test_help_ends_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` ends with examples of the command. For live it says what --reasons costs."""
    with pytest.raises(SystemExit):
        settings(command, "--help")
    output = capsys.readouterr().out
    examples = output.rpartition("examples:\n")[2].rstrip().splitlines()
    assert examples
    assert all(line.startswith("  ") and f"hvprobe {command}" in line for line in examples)
    assert command != "live" or "µs" in output


def test_other_commands() -> None:
    """``doctor`` accepts ``--json``; ``completion`` accepts a shell and nothing else."""
    for arguments, json in ((("doctor", "--json"), True), (("doctor",), False)):
        found = settings(*arguments)
        assert isinstance(found, DoctorSettings)
        assert found.json is json
    assert settings("completion", "zsh") == CompletionSettings(shell=Shell.ZSH)
    for wrong in (
        ("completion",),
        ("completion", "powershell"),
        ("completion", "bash", "--node", "n"),
    ):
        with pytest.raises(UsageError):
            settings(*wrong)
