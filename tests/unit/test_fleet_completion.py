# SPDX-License-Identifier: Apache-2.0
"""What continues ``kubectl hvprobe …``, in the form that kubectl reads."""

from __future__ import annotations

import pytest

from probes.command.cli import main
from probes.command.fleet_completion import Wanted, offered

COMMANDS = ["vmis", "nodes", "why", "doctor"]
TYPES = ["kvm", "tcg", "mshv", "unknown"]


def shown(typed: str) -> tuple[list[str], int]:
    """The words that continue a line, without their descriptions, and the directive."""
    *words, last = offered(typed.split(" ")).lines()
    assert last.startswith(":")
    return [word.partition("\t")[0] for word in words], int(last[1:])


@pytest.mark.parametrize(
    ("typed", "words", "directive"),
    [
        ("", COMMANDS, 4),
        ("no", ["nodes"], 4),
        ("nothing", [], 4),
        ("nodes ", [], 4),
        ("--context prod ", COMMANDS, 4),
        ("--context prod no", ["nodes"], 4),
        ("--context=prod nodes", ["nodes"], 4),
        ("--context prod nodes -o j", ["json"], 4),
        ("--type kvm --out", ["--output"], 4),
        ("nothing ", [], 4),
        ("vmis --type ", TYPES, 6),
        ("--type ", TYPES, 6),
        ("--type t", ["tcg"], 6),
        ("--type tcg,", ["tcg,kvm", "tcg,mshv", "tcg,unknown"], 6),
        ("--type tcg,u", ["tcg,unknown"], 6),
        ("--type=t", ["tcg"], 6),
        ("--type=tcg,k", ["tcg,kvm"], 6),
        ("vmis --cause dev", ["device_missing_in_pod", "device_inaccessible"], 6),
        ("nodes --type ", [], 4),
        ("nodes -o ", ["wide", "json", "csv"], 4),
        ("nodes -o j", ["json"], 4),
        ("nodes --output=c", ["csv"], 4),
        ("nodes -o csv,", [], 4),
        ("doctor -o ", ["json"], 4),
        ("why default/alpha --fail-on k", ["kvm"], 6),
        ("nodes --timeout ", [], 4),
        ("nodes --kubeconfig ", [], 0),
        ("nodes --kubeconfig=con", [], 0),
        ("doctor --ver", ["--verbose"], 4),
        ("doctor -v --ver", [], 4),
        ("doctor -v --out", ["--output"], 4),
        ("nodes -o json --out", [], 4),
        ("--fail", ["--fail-on"], 4),
        ("-", None, 4),
    ],
)
def test_words(typed: str, words: list[str] | None, directive: int) -> None:
    """Commands, flags that are not there yet, and what a flag accepts, also in a list."""
    found, said = shown(typed)
    assert said == directive
    if words is None:
        assert {"--type", "--node", "--help"} <= set(found)
    else:
        assert found == words


@pytest.mark.parametrize(
    ("typed", "wanted", "reach"),
    [
        ("why ", Wanted.VM, ()),
        ("why -o json ", Wanted.VM, ()),
        ("why default/alpha ", None, ()),
        ("nodes ", None, ()),
        ("-n ", Wanted.NAMESPACE, ()),
        ("vmis --namespace=a", Wanted.NAMESPACE, ()),
        ("nodes --node ", Wanted.NODE, ()),
        ("--kubeconfig a --context=b why ", Wanted.VM, ("--kubeconfig=a", "--context=b")),
        ("why --kubeconfig a --context=b ", Wanted.VM, ("--kubeconfig=a", "--context=b")),
    ],
)
def test_names(typed: str, wanted: Wanted | None, reach: tuple[str, ...]) -> None:
    """Names are asked of the cluster that the flags on the line mean."""
    found = offered(typed.split(" "))
    assert (found.wanted, found.reach) == (wanted, reach)


def test_names_complete_a_list() -> None:
    """A name that the list has already is not offered again."""
    found = offered(["nodes", "--node", "n1,n"])
    assert [*found.lines(["n1", "n2", "m1"])] == ["n1,n2", ":6"]


def test_each_command_and_flag_is_described() -> None:
    """A shell that can show descriptions has one for each, without its variable."""
    for typed in ([""], ["vmis", "-"], ["doctor", "-"]):
        for line in [*offered(typed).lines()][:-1]:
            word, _, words = line.partition("\t")
            assert words, word
            assert "HVPROBE_" not in words


def test_without_a_cluster_nothing_is_offered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error reaches the prompt, whichever is wrong."""
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    for words in (["why", ""], ["nodes", "--node", ""], ["why", "--kubeconfig", "", ""]):
        assert main(["fleet", "__complete", *words]) == 0
        out, err = capsys.readouterr()
        assert (out.splitlines()[-1][0], len(out.splitlines()), err) == (":", 1, "")
