# SPDX-License-Identifier: Apache-2.0
"""The table of platforms, and the document that is written from results."""

import json
from pathlib import Path

import pytest

from vmtest import platform_matrix
from vmtest.by_name import UnknownNameError, rows_in
from vmtest.platform_model import Boot, Platform, Variant
from vmtest.platforms import BOOTS, SELECTION_VARIABLE, WHAT

ROWS = [(boot, platform) for boot in BOOTS for platform in boot.platforms]


def test_boots_are_selected_by_name() -> None:
    """No boot runs beside all other tests. The error for an unknown name lists the known ones."""

    def selected(named: dict[str, str]) -> tuple[Boot, ...]:
        return rows_in(SELECTION_VARIABLE, BOOTS, what=WHAT, environ=named)

    assert selected({}) == ()
    assert selected({"HVPROBE_PLATFORMS": "all"}) == BOOTS
    chosen = selected({"HVPROBE_PLATFORMS": " cloud, modules"})
    assert [boot.name for boot in chosen] == ["cloud", "modules"]
    with pytest.raises(UnknownNameError, match=r"'windows'.*modules"):
        selected({"HVPROBE_PLATFORMS": "windows"})


def test_names_are_unique() -> None:
    """Tests, results and rows of the document are found by name."""
    assert len({boot.name for boot in BOOTS}) == len(BOOTS)
    assert len({platform.name for _, platform in ROWS}) == len(ROWS)
    assert len({platform.title for _, platform in ROWS}) == len(ROWS)


@pytest.mark.parametrize("boot", BOOTS, ids=lambda boot: boot.name)
def test_what_cannot_be_undone_comes_last(boot: Boot) -> None:
    """A platform that cannot be undone would be part of each one after it."""
    assert all(platform.leave or not platform.enter for platform in boot.platforms[:-1])


@pytest.mark.parametrize("platform", [platform for _, platform in ROWS], ids=lambda row: row.name)
def test_what_is_lost_is_said(platform: Platform) -> None:
    """Where an agent knows less, its doctor has to say why."""
    for expected in platform.expected.values():
        verdicts = (expected.kvm, expected.halted, expected.tcg)
        if verdicts != ("kvm, verified", "kvm, verified", "tcg, verified"):
            assert expected.doctor


def test_the_document_shows_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row shows the recorded verdicts or FAIL; a test that did not run has no row."""
    boot = BOOTS[0]
    (tmp_path / boot.name).mkdir()
    first, second, third = boot.platforms[:3]
    variant = Variant.CAPABILITIES.value
    properties = {
        "alpha": "kvm, verified: VM exits recorded",
        "exits": "kvm_statistics",
        "doctor_0": "warn: permissions: incomplete | so",
        "doctor_1": "fail: VM verdicts: fallback: lab/beta (4711)",
    }
    (tmp_path / boot.name / "junit.xml").write_text(
        f"""<testsuites><testsuite>
<testcase name="test_platform[{first.name}-{variant}]"><properties>{
            "".join(
                f'<property name="{name}" value="{value}"/>' for name, value in properties.items()
            )
        }</properties></testcase>
<testcase name="test_platform[{second.name}-{variant}]"><failure/></testcase>
</testsuite></testsuites>"""
    )
    (tmp_path / boot.name / "facts.json").write_text(json.dumps({"kernel": "6.1.0-0-amd64"}))
    monkeypatch.setattr(platform_matrix, "RESULTS", tmp_path)
    table = platform_matrix.platforms()
    assert f"| {first.title} | {variant} | kvm, verified: VM exits recorded |" in table
    assert f"| {second.title} | {variant} | FAIL |" in table
    assert third.title not in table
    doctor = platform_matrix.doctors()
    assert "- warn: permissions: incomplete | so\n" in doctor
    assert "lab/beta" not in doctor
    assert f"| {second.title} | 6.1.0-0-amd64 | {second.how} |" in platform_matrix.made()
    assert third.title not in platform_matrix.made()
