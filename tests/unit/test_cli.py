# SPDX-License-Identifier: Apache-2.0
"""The command hvprobe: exit codes, what goes to stdout and what to stderr."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf import loader_process
from probes.command.cli import main
from probes.command.inputs import check
from probes.command.settings import parse
from probes.command.why_show import exit_code
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.report.why import explain
from tests.support.facts import captured, plant
from tests.support.rich_report import rich_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an unrelated package named bcc that hides the real one, so no BPF is loaded."""
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "bcc.py").write_text('"""Body-centred cubic."""\n')
    source = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{loader_process._MAIN}"
    monkeypatch.setattr(loader_process, "_MAIN", source)
    return folder


@pytest.fixture
def quiet_logging() -> Iterator[None]:
    """Restores the logging of the process, which ``main`` sets up."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("HVPROBE_")]:
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["watch"], "watch"),
        (["agent", "--listen", "nowhere"], "nowhere"),
        (["snapshot", "--log-level", "loud"], "loud"),
        (["doctor", "--log-format", "xml"], "xml"),
        (["agent", "--tls-cert", "x"], "--tls-key"),
        (["agent", "--standalone", "--kubeconfig", "x"], "exclude"),
        (["agent", "--standalone", "--events"], "exclude"),
        (["agent", "--events"], "no service account is mounted; give --kubeconfig"),
        (["agent", "--standalone", "--authorization", "kubernetes"], "exclude"),
        (
            ["agent", "--authorization", "kubernetes"],
            "--authorization kubernetes needs a cluster, and no service account is mounted",
        ),
        (["doctor", "a\nb"], "a"),
        (["why"], "NAMESPACE/NAME"),
        (["why", "nowhere"], "'nowhere' is neither NAMESPACE/NAME nor a process ID"),
    ],
    ids=lambda value: " ".join(value).replace("\n", " ") if isinstance(value, list) else "",
)
def test_wrong_usage(
    arguments: list[str],
    says: str,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong usage exits with code 2, with one line on stderr and nothing on stdout."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("hvprobe: ")
    assert len(output.err.splitlines()) == 1
    assert says in output.err


def test_wrong_variable(
    clean: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A malformed variable is wrong usage."""
    monkeypatch.setenv("HVPROBE_LOG_FORMAT", "xml")
    assert main(["doctor"]) == 2
    assert "'xml' is not known; give text or json" in capsys.readouterr().err
    monkeypatch.setenv("HVPROBE_LOG_FORMAT", "text")
    monkeypatch.setenv("HVPROBE_STANDALONE", "perhaps")
    assert main(["doctor"]) == 2
    assert "HVPROBE_STANDALONE='perhaps' is neither true nor false" in capsys.readouterr().err


def test_wrong_usage_of_the_program() -> None:
    """The program reports wrong usage from its command line in one line, without a traceback."""
    found = subprocess.run(
        [sys.executable, "-m", "probes", "watch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert len(found.stderr.splitlines()) == 1
    assert "watch" in found.stderr


def test_snapshot(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``snapshot`` prints one JSON report of the node under --proc on stdout, errors on stderr."""
    plant(proc, captured("tcg_multi"))
    assert main(["snapshot", "--standalone", "--node", "n", "--proc", str(proc)]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["schema"], report["node"]["name"]) == ("hvprobe/v1", "n")
    assert [(vmi["name"], vmi["hypervisor_type"]) for vmi in report["vmis"]] == [("beta", "tcg")]
    assert report["vmis"][0]["verified"] is False
    assert "no BPF" in output.err
    assert report["health"]["ledger"]["error"] in output.err


def why(proc: Path, *arguments: str) -> int:
    return main(["why", "--standalone", "--node", "n", "--proc", str(proc), *arguments])


def test_why(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``why`` explains a VM by its name or process; the exit code of an emulated one is 3."""
    emulated = captured("tcg_multi")
    plant(proc, emulated)
    assert why(proc, "lab/beta") == 3
    output = capsys.readouterr()
    assert output.out.startswith("lab/beta is emulated in software (tcg)")
    assert f"pid        {emulated.tgid}, program" in output.out
    assert "no BPF" in output.err
    assert why(proc, str(emulated.tgid), "--json") == 3
    written = json.loads(capsys.readouterr().out)
    assert (written["schema"], written["vmi"]["name"]) == ("hvprobe-why/v1", "beta")
    assert written["processes"][0]["tgid"] == emulated.tgid


def test_why_of_what_is_not_there(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A VM or process that is not there exits with 1, nothing on stdout, and the nearest names."""
    plant(proc, captured("tcg_multi"))
    for subject, says in {
        "lab/betta": "no VM lab/betta runs on node n; the nearest names are lab/beta",
        "q/x": "no VM q/x runs on node n; no VM here has a similar name",
        "77": "process 77 is no VMM on node n",
    }.items():
        assert why(proc, "--log-level", "error", subject) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"hvprobe: {says}")
        assert len(output.err.splitlines()) == 1


@pytest.mark.parametrize(("kind", "code"), [("kvm", 0), ("mshv", 0), ("tcg", 3), ("unknown", 4)])
@pytest.mark.parametrize("verified", [True, False])
def test_exit_codes_of_why(kind: str, code: int, verified: bool) -> None:
    """The exit code depends on the type, whether it is verified or inferred."""
    verdict = Verdict(type=HypervisorType(kind), verified=verified, reasons=(Reason.RUN_RECORDED,))
    plain = rich_report()
    vmis = (plain.vmis[0]._replace(verdict=verdict),)
    explanation = explain(replace(plain, vmis=vmis), vmis[0].vm)
    assert explanation is not None
    assert exit_code(explanation) == code


def test_wrong_bcc_is_reported_with_its_remedy(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The unrelated package bcc of the Python index is reported with its path and the remedy.

    In another than the initial PID namespace bcc is not imported, and ``hostPID`` is named.
    """
    from ebpf.privileges import in_initial_pid_namespace

    plant(proc, captured("tcg_multi"))
    main(["doctor", "--proc", str(proc)])
    output = capsys.readouterr().out
    if in_initial_pid_namespace():
        assert str(no_bcc / "bcc.py") in output
        assert "python3-bpfcc" in output
    else:
        assert "hostPID" in output


def test_doctor_of_the_real_node(
    clean: None, no_bcc: Path, quiet_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without BPF and with a readable /proc verdicts can only be inferred: the exit code is 1."""
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "verdicts can only be inferred on this node"
    )


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a command begins to observe the node."""

    def started(*_: object) -> None:
        pytest.fail("the command started in spite of a wrong input")

    monkeypatch.setattr("probes.command.agent.observing", started)


KUBECONFIG = "clusters: [{name: c}]\ncontexts: [{name: c}]\n"


def wrong_inputs(folder: Path) -> dict[str, tuple[str, Path, str]]:
    """Flag, path and expected message by kind of wrong input. Makes the files in the folder."""
    for name, text in {
        "text": "a: b: c",
        "list": "[1, 2]",
        "empty": "",
        "scalar": "hello",
        "bomb": "&a [" * 5000,
        "no-contexts": "clusters: [{name: c}]\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "dangling").symlink_to(folder / "nowhere")
    missing = "No such file or directory"
    return {
        "no kubeconfig": ("--kubeconfig", folder / "nowhere", missing),
        "dangling kubeconfig": ("--kubeconfig", folder / "dangling", missing),
        "below a file": ("--kubeconfig", folder / "text" / "config", "Not a directory"),
        "a directory": ("--kubeconfig", folder, "is a directory; use a file"),
        "no YAML": ("--kubeconfig", folder / "text", "it is not YAML"),
        "deep YAML": ("--kubeconfig", folder / "bomb", "it is not YAML"),
        "no text": ("--kubeconfig", folder / "binary", "it is no"),
        "another YAML": ("--kubeconfig", folder / "list", "contains no clusters"),
        "an empty file": ("--kubeconfig", folder / "empty", "contains no clusters"),
        "a word": ("--kubeconfig", folder / "scalar", "contains no clusters"),
        "half a kubeconfig": ("--kubeconfig", folder / "no-contexts", "contains no clusters"),
        "no device": ("--kubeconfig", Path("/dev/null"), "contains no clusters"),
        "no proc": ("--proc", folder / "nowhere", missing),
        "an empty proc": ("--proc", folder, "no /proc is there"),
        "a file as proc": ("--proc", folder / "text", "Not a directory"),
        "no sys": ("--sys", folder / "nowhere", missing),
        "an empty sys": ("--sys", folder, "no /sys is there"),
    }


@pytest.mark.parametrize("command", ["agent", "live", "snapshot", "why default/a", "doctor"])
def test_wrong_files_and_folders(
    command: str,
    tmp_path: Path,
    clean: None,
    no_start: None,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every command exits at once with code 2 and one line that names the path and the reason."""
    for flag, path, says in wrong_inputs(tmp_path).values():
        assert main([*command.split(), flag, str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("hvprobe: ")
        assert len(output.err.splitlines()) == 1
        assert str(path) in output.err
        assert says in output.err


@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca"])
def test_wrong_tls_files(
    flag: str,
    tmp_path: Path,
    clean: None,
    no_start: None,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A TLS file that does not exist or is a directory ends the agent in the same way."""
    good = tmp_path / "good"
    good.write_text("PEM")
    files = dict.fromkeys(["--tls-cert", "--tls-key", "--tls-client-ca"], str(good))
    for wrong, says in {
        tmp_path / "nowhere": "No such file or directory",
        tmp_path: "Is a directory",
    }.items():
        arguments = [word for pair in (files | {flag: str(wrong)}).items() for word in pair]
        assert main(["agent", *arguments]) == 2
        output = capsys.readouterr()
        assert output.err.startswith(f"hvprobe: cannot read TLS file {wrong}: {says}; ")
        assert len(output.err.splitlines()) == 1


def test_a_kubeconfig_in_a_pipe(tmp_path: Path) -> None:
    """The check does not read a pipe, such as a shell's ``<(…)``, which can be read only once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check(parse(["agent", "--kubeconfig", str(pipe)], {}, version="1"))
    good = tmp_path / "config"
    good.write_text(KUBECONFIG)
    check(parse(["agent", "--kubeconfig", str(good)], {}, version="1"))


def test_agent_that_cannot_listen(
    clean: None, no_bcc: Path, quiet_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an address of another machine the agent exits with code 1 and a line that names it."""
    # RFC 5737 reserves TEST-NET-1 for documentation, so no machine has this address.
    assert main(["agent", "--standalone", "--listen", "192.0.2.1:9747"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("hvprobe: ")
    assert "192.0.2.1" in last


def test_logs_as_json(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With ``--log-format json`` every line of stderr is an object, whatever is logged."""
    plant(proc, captured("tcg_multi"))
    main(["doctor", "--proc", str(proc), "--log-format", "json"])
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("a %s\nb", '"')
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["level"] == "warning"
    assert lines[0]["message"].startswith("no BPF")
    assert (lines[-1]["level"], lines[-1]["logger"]) == ("error", "x")
    assert lines[-1]["message"] == 'a "\nb'
    assert "ValueError: two" in lines[-1]["exception"]
    assert all(line["time"][10] == "T" for line in lines)


def test_log_level(
    proc: Path,
    clean: None,
    no_bcc: Path,
    quiet_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing below the requested level is logged."""
    plant(proc, captured("tcg_multi"))
    main(["doctor", "--proc", str(proc), "--log-level", "error"])
    assert capsys.readouterr().err == ""


def test_reader_that_went_away(proc: Path) -> None:
    """A snapshot whose reader closed the pipe ends without an error."""
    plant(proc, captured("tcg_multi"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "probes", "snapshot", "--proc", proc, "--log-level", "error"],
            check=False,
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (0, "")
