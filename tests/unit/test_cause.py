# SPDX-License-Identifier: Apache-2.0
"""Causes of emulation: each of the closed set, their order, and what an unknown fact leads to."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from probes.host.emulation import EmulationFacts, Finding, RegisteredBetween, unknown
from probes.judge.cause import Cause, CauseFacts, CauseFound, cause_facts, cause_of

NAMES = tuple(field.name for field in fields(CauseFacts))
ASKED = (("tcg",), ("kvm", "tcg"), ("kvm",))
Answers = tuple[bool, bool, bool, bool, bool, bool, tuple[str, ...]]


def finding(name: str, value: object) -> Finding[Any]:
    return unknown(f"no {name}") if value is None else Finding(value=value, text=f"seen {name}")


def facts(**changed: object) -> CauseFacts:
    """Make the facts of a guest whose domain asks for tcg, with these answers changed."""
    usual: dict[str, object] = {
        "guest_is_foreign": False,
        "node_has_accelerator": True,
        "emulation_allowed": False,
        "device_in_pod": True,
        "device_accessible": True,
        "accelerator_is_younger": False,
        "asked_for": ("tcg",),
    }
    answers = usual | changed
    return CauseFacts(**{name: finding(name, answers[name]) for name in NAMES})


def cause(**changed: object) -> Cause:
    return cause_of(facts(**changed)).cause


# the table


def test_closed_set() -> None:
    """The causes and their order are those that users rely on."""
    assert [str(cause) for cause in Cause] == [
        "cross_architecture",
        "node_without_accelerator",
        "emulation_allowed",
        "device_missing_in_pod",
        "device_inaccessible",
        "accelerator_added_later",
        "accelerator_refused",
        "requested_by_domain",
        "unknown",
    ]
    assert all(cause.value == cause.name.lower() for cause in Cause)


@pytest.mark.parametrize("cause", Cause)
def test_words(cause: Cause) -> None:
    """Phrase and remedy are one line each, without a full stop, and fit where they are shown."""
    for text in (cause.phrase, cause.remedy):
        assert re.fullmatch(r"[A-Za-z][^\n]*[^.\n]", text)
        assert len(text) <= 100
    assert len({one.phrase for one in Cause}) == len({one.remedy for one in Cause}) == len(Cause)


# each cause


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        (Cause.CROSS_ARCHITECTURE, {"guest_is_foreign": True}),
        (Cause.NODE_WITHOUT_ACCELERATOR, {"node_has_accelerator": False}),
        (Cause.EMULATION_ALLOWED, {"emulation_allowed": True, "device_in_pod": False}),
        (Cause.DEVICE_MISSING_IN_POD, {"device_in_pod": False}),
        (Cause.DEVICE_INACCESSIBLE, {"device_accessible": False}),
        (Cause.ACCELERATOR_ADDED_LATER, {"accelerator_is_younger": True}),
        (Cause.ACCELERATOR_REFUSED, {"asked_for": ("kvm", "tcg")}),
        (Cause.ACCELERATOR_REFUSED, {"asked_for": ("mshv", "kvm", "tcg")}),
        (Cause.ACCELERATOR_REFUSED, {"asked_for": ("xen", "tcg")}),
        (Cause.REQUESTED_BY_DOMAIN, {}),
        (Cause.REQUESTED_BY_DOMAIN, {"asked_for": ("tcg", "kvm")}),
        # A pod that allows emulation and has the device nevertheless: KubeVirt would have used it.
        (Cause.REQUESTED_BY_DOMAIN, {"emulation_allowed": True}),
        (Cause.DEVICE_INACCESSIBLE, {"emulation_allowed": True, "device_accessible": False}),
        # What cannot lead to tcg.
        (Cause.UNKNOWN, {"asked_for": ("kvm",)}),
        (Cause.UNKNOWN, {"asked_for": ()}),
        (Cause.UNKNOWN, {"asked_for": ("qtest", "tcg")}),
    ],
)
def test_cause(expected: Cause, changed: Mapping[str, Any]) -> None:
    """One fact that differs from a domain that asks for tcg."""
    assert cause(**changed) is expected


def test_order() -> None:
    """Everything speaks for emulation; then one fact after another does not, in this order."""
    known: dict[str, object] = {
        "guest_is_foreign": True,
        "node_has_accelerator": False,
        "emulation_allowed": True,
        "device_in_pod": False,
        "device_accessible": False,
        "accelerator_is_younger": True,
        "asked_for": ("kvm", "tcg"),
    }
    innocent = {
        "guest_is_foreign": False,
        "node_has_accelerator": True,
        "emulation_allowed": False,
        "device_in_pod": True,
        "device_accessible": True,
        "accelerator_is_younger": False,
        "asked_for": ("tcg",),
    }
    found = [cause(**known)]
    for name, value in innocent.items():
        known[name] = value
        found.append(cause(**known))
    assert found == list(Cause)[:-1]


# unknown facts


@pytest.mark.parametrize(
    ("unread", "changed"),
    [
        ("guest_is_foreign", {"node_has_accelerator": False}),
        ("node_has_accelerator", {"device_in_pod": False, "emulation_allowed": True}),
        ("emulation_allowed", {"device_in_pod": False}),
        ("device_in_pod", {"emulation_allowed": True}),
        ("device_in_pod", {"device_accessible": False}),
        ("device_accessible", {"accelerator_is_younger": True}),
        ("accelerator_is_younger", {"asked_for": ("kvm", "tcg")}),
        ("asked_for", {}),
    ],
)
def test_unknown_fact_that_decides(unread: str, changed: Mapping[str, Any]) -> None:
    """A later cause is never taken for the cause; the unknown fact is named."""
    found = cause_of(facts(**changed, **{unread: None}))
    assert found == CauseFound(cause=Cause.UNKNOWN, detail=f"no {unread}")
    assert found.sentence == f"the cause is unknown: no {unread}"


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        (Cause.CROSS_ARCHITECTURE, {"guest_is_foreign": True}),
        (
            Cause.NODE_WITHOUT_ACCELERATOR,
            {"guest_is_foreign": False, "node_has_accelerator": False},
        ),
        (
            Cause.EMULATION_ALLOWED,
            {
                "guest_is_foreign": False,
                "node_has_accelerator": True,
                "emulation_allowed": True,
                "device_in_pod": False,
            },
        ),
        (
            Cause.DEVICE_INACCESSIBLE,
            {
                "guest_is_foreign": False,
                "node_has_accelerator": True,
                "device_in_pod": True,
                "device_accessible": False,
            },
        ),
    ],
)
def test_unknown_facts_that_do_not_matter(expected: Cause, known: Mapping[str, Any]) -> None:
    """A cause that holds does not need the facts of later ones."""
    nothing: dict[str, object] = dict.fromkeys(NAMES)
    assert cause(**{**nothing, **known}) is expected


def test_what_explains_the_cause() -> None:
    """The detail is the text of the fact that decided."""
    assert cause_of(facts(device_accessible=False)).detail == "seen device_accessible"
    allowed = facts(emulation_allowed=True, device_in_pod=False)
    assert cause_of(allowed).detail == "seen emulation_allowed"
    assert cause_of(facts(device_in_pod=False)).detail == "seen device_in_pod"
    assert "seen asked_for, which does not lead to tcg" in cause_of(facts(asked_for=())).detail


def answer(answers: Answers) -> Cause:
    """The contract's list, read as it stands, for facts that are all known."""
    foreign, has_one, allowed, in_pod, accessible, younger, asked = answers
    if foreign:
        return Cause.CROSS_ARCHITECTURE
    if not has_one:
        return Cause.NODE_WITHOUT_ACCELERATOR
    if not in_pod:
        return Cause.EMULATION_ALLOWED if allowed else Cause.DEVICE_MISSING_IN_POD
    if not accessible:
        return Cause.DEVICE_INACCESSIBLE
    if younger:
        return Cause.ACCELERATOR_ADDED_LATER
    if asked == ("kvm", "tcg"):
        return Cause.ACCELERATOR_REFUSED
    return Cause.REQUESTED_BY_DOMAIN if asked == ("tcg",) else Cause.UNKNOWN


def completions(values: Iterable[Any]) -> Iterable[Answers]:
    """All ways in which the unknown answers could turn out."""
    choices = [
        [value] if value is not None else (ASKED if name == "asked_for" else (True, False))
        for name, value in zip(NAMES, values, strict=True)
    ]
    return itertools.product(*choices)


def test_every_combination() -> None:
    """A cause is named if and only if it is the cause however the unknown facts turn out.

    All 2916 combinations. An unknown cause is explained by a fact that is unknown.
    """
    domains = [[None, *ASKED] if name == "asked_for" else [None, True, False] for name in NAMES]
    for values in itertools.product(*domains):
        given = facts(**dict(zip(NAMES, values, strict=True)))
        found = cause_of(given)
        possible = {answer(known) for known in completions(values)}
        assert {found.cause} == (possible if len(possible) == 1 else {Cause.UNKNOWN}), values
        texts = {getattr(given, name).text for name in NAMES}
        if len(possible) > 1:
            unread = {
                f"no {name}" for name, value in zip(NAMES, values, strict=True) if value is None
            }
            assert found.detail in unread, values
        elif found.cause is not Cause.UNKNOWN:
            assert found.detail in {text for text in texts if text.startswith("seen ")}, values


# from what was read


READ = EmulationFacts(
    architecture=Finding(value="x86_64", text="QEMU's program is qemu-system-x86_64"),
    emulation_allowed=Finding(value=False, text="not allowed"),
    device_in_pod=Finding(value=True, text="there"),
    device_accessible=Finding(value=True, text="accessible"),
    asked_for=Finding(value=("tcg",), text="tcg"),
)
AT_BOOT = RegisteredBetween(after_s=1.0, by_s=2.0)


def combined(read: EmulationFacts = READ, **changed: object) -> CauseFacts:
    usual: dict[str, Any] = {
        "machine": "x86_64",
        "vmi_architecture": None,
        "accelerator_available": True,
        "registered": AT_BOOT,
        "start_s": 100.0,
    }
    return cause_facts(read, **(usual | changed))


@pytest.mark.parametrize(
    ("program", "vmi", "machine", "foreign", "decides"),
    [
        ("x86_64", None, "x86_64", False, "program"),
        ("x86_64", "x86_64", "x86_64", False, "program"),
        ("i386", None, "x86_64", False, "program"),
        ("i386", "x86_64", "x86_64", False, "program"),
        ("x86_64-microvm", "x86_64", "x86_64", False, "program"),
        ("aarch64", None, "x86_64", True, "program"),
        ("aarch64", "x86_64", "x86_64", True, "program"),
        ("aarch64", "aarch64", "x86_64", True, "program"),
        ("x86_64", "aarch64", "x86_64", True, "VMI"),
        ("x86_64", None, "aarch64", True, "program"),
        ("arm", None, "aarch64", True, "program"),
        ("", None, "x86_64", False, "program"),
        ("", "x86_64", "x86_64", False, "VMI"),
        ("", "aarch64", "x86_64", True, "VMI"),
        (None, "x86_64", "x86_64", False, "VMI"),
        (None, "aarch64", "x86_64", True, "VMI"),
        (None, None, "x86_64", None, "program"),
    ],
)
def test_foreign_guests(
    program: str | None, vmi: str | None, machine: str, foreign: bool | None, decides: str
) -> None:
    """One foreign architecture is enough; a program that names nothing is built for the node."""
    read = replace(READ, architecture=Finding(value=program, text="the program"))
    found = combined(read, vmi_architecture=vmi, machine=machine).guest_is_foreign
    assert found.value is foreign
    said = {"program": "the program", "VMI": f"the VMI asks for {vmi}"}
    assert found.text.startswith(said[decides])


@pytest.mark.parametrize("available", [True, False, None])
def test_availability(available: bool | None) -> None:
    """The node's accelerator is what the trial of it says."""
    assert combined(accelerator_available=available).node_has_accelerator.value is available


@pytest.mark.parametrize(
    ("after_s", "by_s", "younger"),
    [
        (100.01, 200.0, True),
        (100.01, None, True),
        (50.0, 100.0, False),
        (None, 100.0, False),
        (100.0, 200.0, None),  # it started within the clock tick that begins at 100 s
        (50.0, 100.1, None),
        (None, 101.0, None),
        (50.0, None, None),
        (None, None, None),
    ],
)
def test_younger(after_s: float | None, by_s: float | None, younger: bool | None) -> None:
    """Only a limit on the right side of the start decides."""
    registered = RegisteredBetween(after_s=after_s, by_s=by_s)
    assert combined(registered=registered).accelerator_is_younger.value is younger


def test_not_registered() -> None:
    """Without a registration nothing is known of its time."""
    assert combined(registered=None).accelerator_is_younger.value is None


def test_what_was_read_is_kept() -> None:
    """The other facts are those of the process."""
    found = combined()
    for name in ("emulation_allowed", "device_in_pod", "device_accessible", "asked_for"):
        assert getattr(found, name) is getattr(READ, name)
    assert cause_of(found).cause is Cause.REQUESTED_BY_DOMAIN


def test_unread_process() -> None:
    """A process of which nothing could be read: the node alone may explain it."""
    nothing = EmulationFacts.unread("a read does not return")
    found = cause_of(combined(nothing))
    assert found == CauseFound(cause=Cause.UNKNOWN, detail="a read does not return")
    without = combined(nothing, accelerator_available=False, vmi_architecture="x86_64")
    assert cause_of(without).cause is Cause.NODE_WITHOUT_ACCELERATOR
