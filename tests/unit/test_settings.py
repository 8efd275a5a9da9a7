# SPDX-License-Identifier: Apache-2.0
"""Settings from flags and variables: which one wins, and that an error is one line."""

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from probes.command.flags import Authorizing, UsageError
from probes.command.settings import (
    AgentSettings,
    DoctorSettings,
    LiveSettings,
    NodeSettings,
    SnapshotSettings,
    WhySettings,
    parse,
)
from probes.command.values import LogFormat
from probes.vmi.attribution import VmName

COMMANDS = {
    "agent": AgentSettings,
    "live": LiveSettings,
    "snapshot": SnapshotSettings,
    "doctor": DoctorSettings,
}


def settings(*arguments: str, **environment: str) -> AgentSettings:
    found = parse(arguments, environment, version="1.2.3")
    assert isinstance(found, AgentSettings)
    return found


def test_defaults() -> None:
    """The defaults are this host, its own /proc and /sys, all addresses and no TLS.

    Whether there is a cluster is not decided.
    """
    found = settings("agent")
    assert found.version == "1.2.3"
    assert found.node == socket.gethostname()
    assert (found.proc_root, found.sys_root) == (Path("/proc"), Path("/sys"))
    assert (found.listen.host, found.listen.port) == ("0.0.0.0", 9747)
    assert (found.standalone, found.kubeconfig, found.tls) == (None, None, None)
    assert (found.log_format, found.log_level) == (LogFormat.TEXT, "INFO")
    assert found.ledger_capacity is None


def test_authorization() -> None:
    """Clients need no token by default; flag and variable ask for one, and the flag wins."""
    assert settings("agent").authorization is Authorizing.NONE
    found = settings("agent", HVPROBE_AUTHORIZATION="kubernetes")
    assert found.authorization is Authorizing.KUBERNETES
    found = settings("agent", "--authorization", "none", HVPROBE_AUTHORIZATION="kubernetes")
    assert found.authorization is Authorizing.NONE
    assert settings("agent", "--standalone", "--authorization", "none").standalone


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str) -> None:
    """Each command takes the common flags."""
    words = [command, "--node", "n", "--proc", "/host/proc", "--sys", "/host/sys"]
    found = parse(words, {}, version="1.2.3")
    assert isinstance(found, NodeSettings)
    assert type(found) is COMMANDS[command]
    assert found.node == "n"
    assert (found.proc_root, found.sys_root) == (Path("/host/proc"), Path("/host/sys"))


FLAGS = {
    "--listen": ("HVPROBE_LISTEN", "127.0.0.1:1", "[::1]:2"),
    "--node": ("HVPROBE_NODE", "by-variable", "by-flag"),
    "--kubeconfig": ("HVPROBE_KUBECONFIG", "a.conf", "b.conf"),
    "--proc": ("HVPROBE_PROC", "/a", "/b"),
    "--sys": ("HVPROBE_SYS", "/a", "/b"),
    "--log-format": ("HVPROBE_LOG_FORMAT", "json", "text"),
    "--log-level": ("HVPROBE_LOG_LEVEL", "debug", "error"),
    "--ledger-capacity": ("HVPROBE_LEDGER_CAPACITY", "256", "65536"),
}


def shown(found: AgentSettings, flag: str) -> str | None:
    match flag:
        case "--listen":
            return str(found.listen)
        case "--proc" | "--sys":
            return str(getattr(found, flag.removeprefix("--") + "_root"))
        case "--log-level":
            return found.log_level.lower()
        case _:
            value = getattr(found, flag.removeprefix("--").replace("-", "_"))
            return None if value is None else str(value)


@pytest.mark.parametrize("flag", FLAGS)
def test_flag_wins_over_its_variable(flag: str) -> None:
    """A flag overrides its variable, and an empty variable is ignored."""
    variable, by_variable, by_flag = FLAGS[flag]
    assert shown(settings("agent", **{variable: by_variable}), flag) == by_variable
    assert shown(settings("agent", flag, by_flag), flag) == by_flag
    assert shown(settings("agent", flag, by_flag, **{variable: by_variable}), flag) == by_flag
    assert shown(settings("agent", f"{flag}={by_flag}"), flag) == by_flag
    assert shown(settings("agent", **{variable: ""}), flag) == shown(settings("agent"), flag)


def test_node_name_of_the_pod() -> None:
    """hvprobe's own flag and variable override the pod's $NODE_NAME."""
    assert settings("agent", NODE_NAME="pod").node == "pod"
    assert settings("agent", NODE_NAME="pod", HVPROBE_NODE="ours").node == "ours"
    assert settings("agent", "--node", "flag", NODE_NAME="pod", HVPROBE_NODE="ours").node == "flag"
    assert settings("agent", NODE_NAME="").node == socket.gethostname()


@pytest.mark.parametrize(
    ("arguments", "environment", "standalone"),
    [
        (("--standalone",), {}, True),
        ((), {"HVPROBE_STANDALONE": "1"}, True),
        ((), {"HVPROBE_STANDALONE": "true"}, True),
        ((), {"HVPROBE_STANDALONE": "YES"}, True),
        ((), {"HVPROBE_STANDALONE": " on "}, True),
        ((), {"HVPROBE_STANDALONE": "Off"}, None),
        ((), {"HVPROBE_STANDALONE": "no"}, None),
        (("--standalone",), {"HVPROBE_STANDALONE": "banana"}, True),
        ((), {"HVPROBE_STANDALONE": "0"}, None),
        ((), {"HVPROBE_STANDALONE": "false"}, None),
        ((), {"HVPROBE_STANDALONE": ""}, None),
        (("--kubeconfig", "x"), {}, False),
        ((), {"HVPROBE_KUBECONFIG": "x"}, False),
    ],
)
def test_standalone(
    arguments: Sequence[str], environment: Mapping[str, str], *, standalone: bool | None
) -> None:
    """A flag or variable turns it on, a kubeconfig turns it off; otherwise it is undecided."""
    assert settings("agent", *arguments, **environment).standalone is standalone


@pytest.mark.parametrize(
    ("arguments", "environment", "read"),
    [
        (("agent",), {}, False),
        (("agent", "--vcpu-stats"), {}, True),
        (("agent",), {"HVPROBE_VCPU_STATS": "1"}, True),
        (("agent",), {"HVPROBE_VCPU_STATS": "off"}, False),
        (("live",), {}, True),
        (("snapshot",), {}, True),
        (("doctor",), {"HVPROBE_VCPU_STATS": "1"}, False),
    ],
)
def test_vcpu_statistics(
    arguments: Sequence[str], environment: Mapping[str, str], *, read: bool
) -> None:
    """The agent reads them on request, and commands that show them always do."""
    found = parse(arguments, environment, version="1.2.3")
    assert isinstance(found, NodeSettings)
    assert found.reads_vcpu_statistics is read


@pytest.mark.parametrize(
    ("arguments", "environment", "written"),
    [
        ((), {}, False),
        (("--events",), {}, True),
        ((), {"HVPROBE_EVENTS": "true"}, True),
        ((), {"HVPROBE_EVENTS": "off"}, False),
        (("--standalone",), {"HVPROBE_EVENTS": "0"}, False),
        (("--kubeconfig", "x", "--events"), {}, True),
    ],
)
def test_events(arguments: Sequence[str], environment: Mapping[str, str], *, written: bool) -> None:
    """Events are written on request only."""
    assert settings("agent", *arguments, **environment).events is written


def test_tls() -> None:
    """TLS has a certificate, a key and, if clients need a certificate, their CA."""
    found = settings("agent", "--tls-cert", "c", "--tls-key", "k").tls
    assert found is not None
    assert (found.cert, found.key, found.client_ca) == (Path("c"), Path("k"), None)
    found = settings("agent", "--tls-client-ca", "a", HVPROBE_TLS_CERT="c", HVPROBE_TLS_KEY="k").tls
    assert found is not None
    assert found.client_ca == Path("a")


WRONG: dict[str, tuple[Sequence[str], Mapping[str, str], str]] = {
    "no command": ((), {}, "COMMAND"),
    "unknown command": (("watch",), {}, "watch"),
    "unknown flag": (("agent", "--speed"), {}, "--speed"),
    "shortened flag": (("agent", "--stand"), {}, "--stand"),
    "flag of another command": (("doctor", "--listen", ":1"), {}, "--listen"),
    "stray word": (("doctor", "please"), {}, "please"),
    "why without a subject": (("why",), {}, "NAMESPACE/NAME|PID"),
    "why with a bare name": (("why", "alpha"), {}, "'alpha' is neither NAMESPACE/NAME nor"),
    "why of an invalid name": (("why", "Default/alpha"), {}, "such as default/alpha or 4711"),
    "why of process 0": (("why", "0"), {}, "'0' is neither NAMESPACE/NAME nor a process ID"),
    "why of a negative process": (("why", "-7"), {}, "-7"),
    "why with control characters": (("why", "a/\x1b[31m"), {}, "'a/\\x1b[31m' is neither"),
    "why of two": (("why", "a/b", "c/d"), {}, "c/d"),
    "flag without its value": (("agent", "--listen"), {}, "--listen"),
    "listen without a port": (("agent", "--listen", "localhost"), {}, "port"),
    "listen with a wrong port": (("agent", "--listen", "localhost:http"), {}, "http"),
    "listen by variable": (("agent",), {"HVPROBE_LISTEN": "localhost"}, "localhost"),
    "log format": (("agent", "--log-format", "xml"), {}, "'xml' is not known; give text or json"),
    "log format by variable": (("agent",), {"HVPROBE_LOG_FORMAT": "xml"}, "give text or json"),
    "log format in capitals": (("agent", "--log-format", "JSON"), {}, "give text or json"),
    "switch": (("agent",), {"HVPROBE_STANDALONE": "banana"}, "HVPROBE_STANDALONE='banana'"),
    "switch of live": (("live",), {"HVPROBE_ONCE": "2"}, "neither true nor false; use one of 1,"),
    "ledger capacity": (
        ("agent", "--ledger-capacity", "many"),
        {},
        "'many' is not a number from 256",
    ),
    "ledger capacity 0": (("live", "--ledger-capacity", "0"), {}, "from 256 to 65536"),
    "ledger capacity too small": (("doctor", "--ledger-capacity", "255"), {}, "255"),
    "ledger capacity too big": (("snapshot",), {"HVPROBE_LEDGER_CAPACITY": "65537"}, "65537"),
    "ledger capacity of digits without end": (("agent", "--ledger-capacity", "9" * 5000), {}, "9"),
    "ledger capacity in other digits": (
        ("agent", "--ledger-capacity", "\u0665" * 3),
        {},
        "from 256",
    ),
    "log level": (("agent", "--log-level", "loud"), {}, "loud"),
    "log level by variable": (("doctor",), {"HVPROBE_LOG_LEVEL": "loud"}, "loud"),
    "standalone and kubeconfig": (("agent", "--standalone", "--kubeconfig", "x"), {}, "exclude"),
    "events and standalone": (("agent", "--standalone", "--events"), {}, "exclude each other"),
    "events of another command": (("snapshot", "--events"), {}, "--events"),
    "events by variable": (
        ("agent", "--standalone"),
        {"HVPROBE_EVENTS": "1"},
        "--events and --standalone",
    ),
    "authorization": (
        ("agent", "--authorization", "rbac"),
        {},
        "'rbac' is not known; give none or kubernetes",
    ),
    "authorization by variable": (
        ("agent",),
        {"HVPROBE_AUTHORIZATION": "yes"},
        "none or kubernetes",
    ),
    "authorization and standalone": (
        ("agent", "--standalone", "--authorization", "kubernetes"),
        {},
        "--authorization kubernetes and --standalone exclude each other",
    ),
    "authorization of another command": (
        ("doctor", "--authorization", "kubernetes"),
        {},
        "--authorization",
    ),
    "certificate without key": (("agent", "--tls-cert", "c"), {}, "--tls-key"),
    "key without certificate": (("agent", "--tls-key", "k"), {}, "--tls-cert"),
    "clients' CA alone": (("agent", "--tls-client-ca", "a"), {}, "--tls-cert"),
    "newline in a word": (("doctor", "a\nb"), {}, "a"),
}


@pytest.mark.parametrize(("arguments", "environment", "says"), WRONG.values(), ids=WRONG.keys())
def test_wrong_usage(arguments: Sequence[str], environment: Mapping[str, str], says: str) -> None:
    """The error of wrong usage is one line that names the mistake."""
    with pytest.raises(UsageError) as caught:
        parse(arguments, environment, version="1.2.3")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_variable_of_another_command_breaks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed variable is ignored by commands without its switch, and by ``--help``."""
    assert settings("agent", HVPROBE_ONCE="banana") == settings("agent")
    with pytest.raises(SystemExit):
        settings("live", "--help", HVPROBE_ONCE="banana")
    assert "HVPROBE_ONCE" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` lists every variable, ends with examples, and is no error."""
    with pytest.raises(SystemExit) as caught:
        parse([*command.split(), "--help"], {}, version="1.2.3")
    assert not caught.value.code
    output = capsys.readouterr()
    assert output.err == ""
    examples = output.out.rpartition("examples:\n")[2].rstrip().splitlines()
    assert examples
    assert all(line.startswith("  ") for line in examples)
    assert any(f"hvprobe {command}".strip() in line for line in examples)
    if command:
        variables = [row[0] for flag, row in FLAGS.items() if flag != "--listen"]
        assert [name for name in variables if name not in output.out] == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_survives_any_variable(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No value of a variable breaks the help text."""
    with pytest.raises(SystemExit):
        parse([*command.split(), "--help"], {"HVPROBE_NODE": "100%s %(x)s"}, version="1.2.3")
    assert "usage: hvprobe" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints the version on stdout."""
    with pytest.raises(SystemExit) as caught:
        parse(["--version"], {}, version="1.2.3")
    assert not caught.value.code
    assert capsys.readouterr().out == "hvprobe 1.2.3\n"


@pytest.mark.parametrize("node", ["a\udcff", "a\nb", "a\x1b[31m", "a\u202eb", "a\u2028b"])
def test_a_node_name_must_be_printable(node: str) -> None:
    """A node name with surrogates, controls or direction marks is refused in printable ASCII."""
    with pytest.raises(UsageError) as caught:
        settings("agent", "--node", node)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("contains unprintable characters; use another with --node")


def test_any_printable_node_name_is_taken() -> None:
    """Settings keep a printable node name unchanged. The exposition escapes it."""
    assert settings("agent", "--node", 'a"b\\{x="ü"}').node == 'a"b\\{x="ü"}'


def test_why() -> None:
    """``why`` takes a VM or a process, and prints text unless JSON is wanted."""
    found = parse(["why", "lab/web.a"], {"HVPROBE_JSON": "yes"}, version="1")
    assert isinstance(found, WhySettings)
    assert (found.subject, found.json) == (VmName(namespace="lab", name="web.a"), True)
    assert found.refreshes_once
    assert found.reads_vcpu_statistics
    found = parse(["why", "4711"], {}, version="1")
    assert isinstance(found, WhySettings)
    assert (found.subject, found.json) == (4711, False)
