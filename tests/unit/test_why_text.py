# SPDX-License-Identifier: Apache-2.0
"""The text, page and JSON of an explanation: the same words, whatever the names are."""

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from probes.judge.cause import Cause, CauseFound
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.render.why_page import ROOT, why_page
from probes.render.why_text import WIDTH, why_text
from probes.report.json_schema import why_schema
from probes.report.model import NodeReport
from probes.report.why import WHY_SCHEMA, Explanation, Subject, explain, parse_subject
from probes.report.why_json import why_json
from probes.report.why_words import headline, sections
from probes.vmi.attribution import VmName
from tests.support.facts import tracked
from tests.support.page_reader import Read
from tests.support.rich_report import rich_report
from tests.support.why_reports import (
    ALPHA,
    HIDDEN_EVIDENCE,
    KVM_EVIDENCE,
    MSHV_EVIDENCE,
    PAUSED_EVIDENCE,
    TCG_EVIDENCE,
    cluster_node,
    emulated,
    node,
    seen,
    standalone_node,
    vm_of,
)

TESTS = Path(__file__).resolve().parents[1]
FOR_PEOPLE = TESTS.parent / "docs/why.schema.json"
GOLDEN: Mapping[str, tuple[NodeReport, str]] = {
    "why_kvm": (standalone_node(), "default/alpha"),
    "why_tcg": (cluster_node(), "default/beta"),
    "why_lost": (cluster_node(), "lab/lost"),
}


CONTRADICTED = (
    "default/alpha runs on KVM: the kernel shows it (verified), but command line asks for another "
    "accelerator."
)


def about(report: NodeReport, subject: str | Subject) -> Explanation:
    parsed = parse_subject(subject) if isinstance(subject, str) else subject
    assert parsed is not None
    found = explain(report, parsed)
    assert found is not None
    return found


def text(explanation: Explanation, **options: Any) -> list[str]:  # noqa: ANN401 - any option
    return list(why_text(explanation, **options))


def page(explanation: Explanation, *, failure: str | None = None) -> str:
    return why_page(explanation, failure=failure, last_known_s=60).decode()


def explanations() -> list[Explanation]:
    """One of each kind."""
    report = cluster_node()
    found = [about(report, subject) for subject in ("default/beta", "4805", "lab/lost")]
    found.append(about(standalone_node(), "4711"))
    kinds = (PAUSED_EVIDENCE, MSHV_EVIDENCE, HIDDEN_EVIDENCE, TCG_EVIDENCE)
    nodes = [node(seen(4711, each, name="alpha", counters={})) for each in kinds]
    rich = rich_report()
    return [
        *found,
        *(about(each, "default/alpha") for each in nodes),
        *(about(rich, vmi.vm) for vmi in rich.vmis),
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """The page of text equals the stored one, which the README shows.

    After an intended change run the tests with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    path = TESTS / f"golden/{name}.txt"
    shown = "\n".join(text(about(*GOLDEN[name]))) + "\n"
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def test_the_readme_shows_the_golden_page() -> None:
    """README's example of ``hvprobe why`` is the stored page of an emulated VM."""
    golden = (TESTS / "golden/why_tcg.txt").read_text(encoding="utf-8")
    assert f"```\n{golden}```" in (TESTS.parent / "README.md").read_text(encoding="utf-8")


def test_golden_page() -> None:
    """The page of an emulated VM equals the stored one."""
    path = TESTS / "golden/why_tcg.html"
    shown = page(about(*GOLDEN["why_tcg"]))
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (standalone_node(), "default/alpha runs on KVM: the kernel shows it (verified)."),
        (
            node(seen(4711, PAUSED_EVIDENCE, name="alpha")),
            "default/alpha runs on KVM: inferred, not proven by the kernel (not verified).",
        ),
        (
            node(seen(4711, MSHV_EVIDENCE, name="alpha")),
            "default/alpha runs on mshv: the kernel shows it (verified).",
        ),
        (
            node(seen(4711, TCG_EVIDENCE, name="alpha")),
            "default/alpha is emulated in software (tcg): the kernel shows it (verified).",
        ),
        (
            node(seen(4711, HIDDEN_EVIDENCE, name="alpha")),
            "It is unknown how default/alpha runs: file descriptors not fully readable.",
        ),
        (
            node(seen(4711, replace(KVM_EVIDENCE, asked_for=("tcg",)), name="alpha")),
            CONTRADICTED,
        ),
    ],
)
def test_headline(report: NodeReport, says: str) -> None:
    """The verdict is one sentence that a person understands."""
    assert headline(about(report, "default/alpha")) == says
    assert headline(about(report, "4711")) == says


def test_headline_of_a_fallback() -> None:
    """That the node has an accelerator is part of the sentence."""
    assert headline(about(cluster_node(), "default/beta")) == (
        "default/beta is emulated in software (tcg), although this node has an accelerator that "
        "works: the kernel shows it (verified)."
    )


@pytest.mark.parametrize("cause", list(Cause))
def test_a_cause_has_the_words_of_all_outputs(cause: Cause) -> None:
    """All say the cause, what decided it and the remedy, right after the verdict."""
    found = CauseFound(cause=cause, detail="as the process of the test shows")
    explanation = about(node(emulated(found)), "default/beta")
    first = sections(explanation)[0]
    assert first.title == "Why it is emulated"
    assert [line.words for line in first.lines] == [found.sentence, cause.remedy]
    (process,) = json.loads(json.dumps(why_json(explanation)["processes"]))
    assert (process["cause_detail"], process["remedy"]) == (found.sentence, cause.remedy)


@pytest.mark.parametrize("explanation", explanations(), ids=lambda each: each.title)
def test_text_and_page_have_the_same_words(explanation: Explanation) -> None:
    """Every sentence, label and word of the text is on the page, in the same order."""
    joined = re.sub(r"\s+", "", "".join(text(explanation)))
    read = Read(page(explanation))
    main = read.text.partition(headline(explanation))
    shown = main[1] + main[2].partition("nodemetrics")[0]
    assert joined in re.sub(r"\s+", "", shown)
    assert read.style


@pytest.mark.parametrize("explanation", explanations(), ids=lambda each: each.title)
@pytest.mark.parametrize("width", [WIDTH, 60, 30])
def test_no_line_is_wider_than_the_terminal(explanation: Explanation, width: int) -> None:
    """Text wraps, and the words keep a minimum of room."""
    lines = text(explanation, width=width)
    assert max(len(line) for line in lines) <= max(width, 45)
    assert len(lines) <= 60 or width < WIDTH
    assert all(line == line.rstrip() for line in lines)


def test_counters_name_their_source() -> None:
    """A counter says what counts it, and one that is absent says why."""
    shown = " ".join(" ".join(text(about(standalone_node(), "4711"))).split())
    assert "VM exits 81,234, from KVM's statistics, since the VM started" in shown
    assert "userspace exits 301, by the hook kvm_userspace_exit, tracepoint" in shown
    assert "exits by class halt 900, io 340" in shown
    paused = about(node(seen(4711, PAUSED_EVIDENCE, name="alpha", counters={})), "4711")
    shown = " ".join(" ".join(text(paused)).split())
    assert "VM exits not counted for this VM; kvm_exit has fired on this node" in shown


def test_remedies_of_reasons() -> None:
    """A reason that a person can do something about says what, before the evidence."""
    explanation = about(node(seen(4711, HIDDEN_EVIDENCE, name="alpha")), "4711")
    first = sections(explanation)[0]
    assert first.title == "What to do"
    assert [line.words for line in first.lines] == [Reason.FDS_UNREADABLE.remedy]


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x00b\x1b[31mred\x1b]0;title\x07\r\nX-Header: 1",
    "\u202egnp.exe\u2066\u2069\u200b\u2028",
    "lone \ud800 surrogate",
    "x" * 100_000,
    "\u6f22\u5b57" * 500,
]


def hostile(foreign: str) -> Explanation:
    """An explanation in which everything that a process can choose is this text."""
    remembered = tracked(
        program=foreign,
        evidence=replace(TCG_EVIDENCE, asked_for=(foreign,) * 50),
        verdict=ALPHA.verdict,
    )
    cause = CauseFound(cause=Cause.UNKNOWN, detail=foreign)
    process = ALPHA._replace(comm=foreign, guest_name=foreign, tracked=remembered, cause=cause)
    vm = VmName(namespace=foreign, name=foreign)
    verdict = Verdict(type=TCG_VERDICT.type, verified=True, reasons=(Reason.TCG_COMPUTES,))
    named = vm_of(process)._replace(vm=vm, cause=cause, verdict=verdict)
    report = replace(node(process, vmis=[named]), node=foreign, kernel=foreign, version=foreign)
    return about(report, vm)


TCG_VERDICT = emulated().verdict


@pytest.mark.parametrize("foreign", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(foreign: str) -> None:
    """No control character reaches the terminal, no element is added to the page."""
    explanation = hostile(foreign)
    for ascii_only in (False, True):
        lines = text(explanation, ascii_only=ascii_only)
        assert len(lines) < 400
        for line in lines:
            assert not [char for char in line if unicodedata.category(char)[0] == "C"]
            assert line.isascii() or not ascii_only
    shown = page(explanation)
    assert Read(shown).elements == Read(page(hostile("x"))).elements
    assert not [
        char for char in shown.replace("\n", "") if unicodedata.category(char) in ("Cc", "Cf", "Cs")
    ]
    assert len(shown) < 40_000
    json.dumps(why_json(explanation))


@given(st.text(max_size=200))
def test_any_text_is_text(foreign: str) -> None:
    """Any text that a process chooses leads to printable lines and to the same elements."""
    explanation = hostile(foreign)
    lines = text(explanation)
    assert not [char for char in "".join(lines) if unicodedata.category(char)[0] == "C"]
    assert Read(page(explanation)).elements == Read(page(hostile("x"))).elements


def test_the_page_links_back() -> None:
    """Its addresses are relative, so they hold behind a proxy; it has no script."""
    read = Read(page(about(*GOLDEN["why_tcg"]), failure="it <failed>"))
    links = [attributes.get("href") for tag, attributes in read.elements if tag == "a"]
    assert links == ["?refresh=off", ROOT, f"{ROOT}metrics", f"{ROOT}readyz"]
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "img", "iframe", "object"})
    assert "it <failed>." in read.text


def test_the_page_refreshes_itself_until_it_is_told_not_to() -> None:
    """Its links keep that choice, and one of them takes it back."""
    explanation = about(*GOLDEN["why_tcg"])
    refreshing = ("meta", {"http-equiv": "refresh", "content": "10"})
    assert refreshing in Read(page(explanation)).elements
    still = Read(why_page(explanation, failure=None, last_known_s=60, refreshing=False).decode())
    assert refreshing not in still.elements
    links = [attributes.get("href") for tag, attributes in still.elements if tag == "a"]
    assert links[:2] == ["./beta", f"{ROOT}?refresh=off"]


def test_the_page_names_its_tables() -> None:
    """Each table is labelled by the heading of its section."""
    read = Read(page(about(*GOLDEN["why_tcg"])))
    headings = [given["id"] for tag, given in read.elements if tag == "h2"]
    for kind in ("section", "table"):
        assert [given["aria-labelledby"] for tag, given in read.elements if tag == kind] == headings


SCHEMA = why_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_the_schema() -> None:
    """It is valid, carries the version of the output, and docs/ has the newest copy.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == WHY_SCHEMA
    written = json.dumps(SCHEMA, indent=2) + "\n"
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        FOR_PEOPLE.write_text(written)
    assert FOR_PEOPLE.read_text() == written


@pytest.mark.parametrize("explanation", explanations(), ids=lambda each: each.title)
def test_json_keeps_to_the_schema(explanation: Explanation) -> None:
    """Every kind of explanation is valid, and the schema names each of its keys."""
    written = json.loads(json.dumps(why_json(explanation)))
    VALIDATOR.validate(written)
    assert written["schema"] == WHY_SCHEMA
    assert written.keys() == SCHEMA["properties"].keys()
    for process in written["processes"]:
        assert process.keys() <= SCHEMA["$defs"]["process"]["properties"].keys()
        for piece in process["evidence"]:
            assert piece.keys() == SCHEMA["$defs"]["evidence"]["items"]["properties"].keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "hvprobe/v1"),
        (("severity",), "bad"),
        (("attribution", "source"), "guess"),
        (("processes", 0, "is_main"), None),
        (("processes", 0, "evidence", 0, "side"), "maybe"),
        (("processes", 0, "evidence", 0, "points_to"), ["xen"]),
        (("vmi", "hypervisor_type"), "xen"),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    """A wrong word does not pass, and a missing key does not either."""
    wrong: Any = json.loads(json.dumps(why_json(about(*GOLDEN["why_tcg"]))))
    inner = wrong
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        VALIDATOR.validate(wrong)
    del inner[path[-1]]
    with pytest.raises(ValidationError):
        VALIDATOR.validate(wrong)
