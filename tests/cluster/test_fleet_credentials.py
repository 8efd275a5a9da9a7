# SPDX-License-Identifier: Apache-2.0
"""``kubectl hvprobe`` with the kubeconfigs of administrators: what works, and what is one line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from probes.command import cli
from tests.support.apiserver import USER, ApiServer
from tests.support.certificates import Authority
from tests.support.fleet_world import VERSION, FleetWorld, report_of

Captured = pytest.CaptureFixture[str]
Json = dict[str, Any]
DEAD = "https://127.0.0.1:1"
EXEC = "client.authentication.k8s.io/v1"


class Config:
    """A kubeconfig of one context, which a test changes and writes to files."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self._folder = folder
        self.whole: Json = json.loads(api.kubeconfig().read_text())
        self.cluster: Json = self.whole["clusters"][0]["cluster"]
        self.user: Json = self.whole["users"][0]["user"]

    def login(self, script: str) -> None:
        """Let a credential plugin make the credentials."""
        program = self._folder / "login"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        self.user.clear()
        self.user["exec"] = {"apiVersion": EXEC, "command": str(program)}

    def elsewhere(self, name: str) -> Path:
        """Write a kubeconfig with one context of this name, for a server that is not there."""
        other = copy.deepcopy(self.whole)
        for kind, part in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            other[kind][0]["name"] = name
            if kind == "contexts":
                other[kind][0][part] = {"cluster": name, "user": name}
        other["clusters"][0]["cluster"] = {"server": DEAD}
        other["current-context"] = name
        return self.write(name, other)

    def write(self, name: str = "config", whole: Json | None = None) -> Path:
        """Write the kubeconfig, or another one, to a file."""
        file = self._folder / name
        file.write_text(json.dumps(self.whole if whole is None else whole))
        return file


@pytest.fixture
def config(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A cluster of one node, and the kubeconfig of a user who may read it."""
    monkeypatch.setattr(cli, "version", lambda: VERSION)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with ExitStack() as stack:
        world = FleetWorld(api, stack, Authority(tmp_path / "agents", "hvprobe"))
        world.node(report_of("n1", "alpha"))
        folder = tmp_path / "configs"
        folder.mkdir()
        yield Config(api, folder)


def works(capsys: Captured, *words: str) -> None:
    assert cli.main(["fleet", *words]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 VM: 1 kvm; 1 of 1 node answered"
    assert err == ""


def line(capsys: Captured, *words: str) -> str:
    """The only line that a failure prints."""
    assert cli.main(["fleet", *words]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("hvprobe: ")


def test_where_it_is_found(
    config: Config, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A flag, $KUBECONFIG, ~/.kube/config in this order; without any, one line says so."""
    home = tmp_path / "home/.kube"
    assert line(capsys).startswith(f"no kubeconfig: {home}/config does not exist: set KUBECONFIG")
    home.mkdir(parents=True)
    (home / "config").write_text(config.write().read_text())
    works(capsys)
    monkeypatch.setenv("KUBECONFIG", str(config.elsewhere("other")))
    assert f"cannot reach API server {DEAD}: Connection refused" in line(capsys)
    works(capsys, "--kubeconfig", str(config.write()))


def test_several_files(
    config: Config, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first current context counts, as with kubectl, and ``--context`` chooses another one."""
    here, other = config.write(), config.elsewhere("other")
    monkeypatch.setenv("KUBECONFIG", f"{here}:{other}:{tmp_path / 'gone'}")
    works(capsys)
    assert DEAD in line(capsys, "--context", "other")
    monkeypatch.setenv("KUBECONFIG", f"{other}:{here}")
    assert DEAD in line(capsys)
    works(capsys, "--context", "test")
    assert "it has no context 'third'; it has 'other', 'test'" in line(capsys, "--context", "third")


def test_a_credential_plugin(config: Config, capsys: Captured) -> None:
    """Its token is used; if it fails, the API server is not asked at all."""
    token = {"apiVersion": EXEC, "kind": "ExecCredential", "status": {"token": "token-1"}}
    config.login(f"echo '{json.dumps(token)}'")
    works(capsys, "--kubeconfig", str(config.write()))
    for script, words in {
        "echo log in first >&2; exit 3": "process returned 3. log in first",
        "echo junk": "failed to decode process output",
        "echo '{}'": "gave no credentials: ",
    }.items():
        config.login(script)
        assert words in line(capsys, "--kubeconfig", str(config.write())), script
    config.user["exec"]["command"] = "/nonexistent/login"
    said = line(capsys, "--kubeconfig", str(config.write()))
    assert "'/nonexistent/login' gave no credentials: [Errno 2] No such file" in said


def test_a_token_that_has_expired(config: Config, capsys: Captured) -> None:
    """It is one line that says what to do, whatever is asked."""
    config.user |= {"token": "expired"}
    for words in ([], ["nodes"], ["doctor"], ["why", "default/alpha"]):
        said = line(capsys, *words, "--kubeconfig", str(config.write()))
        assert said.startswith("the API server refuses the credentials (401 Unauthorized): log in")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda to: to.update(server=DEAD), f"cannot reach API server {DEAD}: Connection refused"),
        (
            lambda to: to.update(server="https://no-such-host.invalid"),
            "cannot reach API server https://no-such-host.invalid: ",
        ),
        (lambda to: to.update(server="127.0.0.1:1"), "server '127.0.0.1:1' does not begin with"),
        (
            lambda to: to.pop("certificate-authority-data"),
            "unable to get local issuer certificate: check that its certificate is signed by",
        ),
        (
            lambda to: to.update({"certificate-authority-data": "bm9uZQ=="}),
            "no certificate or crl found",
        ),
        (
            lambda to: to.update({"proxy-url": "http://user:secret@127.0.0.1:1"}),
            "through the proxy http://127.0.0.1:1: Connection refused",
        ),
    ],
    ids=["refused", "no host", "no scheme", "unknown CA", "no CA", "proxy"],
)
def test_a_server_that_cannot_be_reached(
    config: Config, capsys: Captured, change: Callable[[Json], object], words: str
) -> None:
    """Refused, unknown, or not trusted: each is one line with the cause."""
    change(config.cluster)
    said = line(capsys, "--kubeconfig", str(config.write()))
    assert words in said
    assert "secret" not in said


def test_a_certificate_for_another_name(config: Config, capsys: Captured) -> None:
    """A server of another name is not trusted, unless the kubeconfig names the name it has."""
    config.cluster["tls-server-name"] = "example.com"
    assert "TLS to API server" in line(capsys, "--kubeconfig", str(config.write()))
    config.cluster["tls-server-name"] = "localhost"
    works(capsys, "--kubeconfig", str(config.write()))


def test_a_user_who_wants_no_verification(config: Config, tmp_path: Path) -> None:
    """``insecure-skip-tls-verify`` works without a warning for each request."""
    del config.cluster["certificate-authority-data"]
    config.cluster["insecure-skip-tls-verify"] = True
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "probes", "fleet", "--kubeconfig", str(config.write())],
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "1 of 1 node answered" in done.stdout


def test_completion_asks_the_cluster(
    config: Config, api: ApiServer, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMs, namespaces and nodes are completed from the VMIs that the user may list."""
    monkeypatch.setenv("KUBECONFIG", str(config.write()))
    for words, names in {
        ("why", ""): ["default/alpha"],
        ("why", "default/a"): ["default/alpha"],
        ("why", "other/"): [],
        ("-n", "d"): ["default"],
        ("nodes", "--node", "n1,"): [],
        ("nodes", "--node="): ["n1"],
        ("why", "--context", "nothing", ""): [],
    }.items():
        assert cli.main(["fleet", "__complete", *words]) == 0
        out, err = capsys.readouterr()
        assert (out.splitlines()[:-1], err) == (names, ""), words
    api.tokens = {"another": USER}
    assert cli.main(["fleet", "__complete", "why", ""]) == 0
    assert capsys.readouterr() == (":4\n", "")
