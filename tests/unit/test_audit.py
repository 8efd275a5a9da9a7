# SPDX-License-Identifier: Apache-2.0
"""scripts/audit.py: what is made of pip-audit's answers."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from packaging.version import Version
from pip_audit._format import JsonFormat
from pip_audit._service.interface import (
    Dependency,
    ResolvedDependency,
    SkippedDependency,
    VulnerabilityResult,
)

from tests.support.locks import ROOT


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("audit")
    del sys.modules["audit"]


def printed(result: dict[Dependency, list[VulnerabilityResult]]) -> str:
    """What pip-audit prints for this result, by its own code."""
    text: str = JsonFormat(output_desc=False, output_aliases=False).format(result, [])
    return text


def vulnerability(number: str, *fixed: str) -> VulnerabilityResult:
    return VulnerabilityResult(
        id=number, description="", fix_versions=[Version(v) for v in fixed], aliases=set()
    )


CLEAN = ResolvedDependency("clean", Version("1.0"))
BAD = ResolvedDependency("bad", Version("2.0"))
UNKNOWN = SkippedDependency("unknown", "not found on the index")


@pytest.mark.parametrize(
    ("answer", "status", "stdout", "stderr"),
    [
        (printed({CLEAN: []}), 0, "", ""),
        (
            printed({CLEAN: [], BAD: [vulnerability("PYSEC-1", "2.1"), vulnerability("PYSEC-2")]}),
            1,
            "",
            (
                "audit: bad 2.0 has PYSEC-1: fixed in 2.1, run make lock ARGS=--upgrade\n"
                "audit: bad 2.0 has PYSEC-2: no version without it exists yet\n"
            ),
        ),
        (
            printed({CLEAN: [], UNKNOWN: []}),
            0,
            "audit: 1 of 2 packages are unknown to the package index\n",
            "",
        ),
        (
            printed({UNKNOWN: []}),
            0,
            "audit: skipped: the package index answers nothing about vulnerabilities\n",
            "",
        ),
        ("", 0, "audit: skipped: pip-audit got no answer: no route\n", ""),
    ],
    ids=["clean", "vulnerable", "partly known", "nothing known", "no answer"],
)
def test_the_answer_is_judged(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    status: int,
    stdout: str,
    stderr: str,
) -> None:
    """A known vulnerability fails and names its remedy; an index without an answer does not."""
    monkeypatch.setattr(audit, "answer", lambda: (answer, "no route"))
    assert audit.main() == status
    assert capsys.readouterr() == (stdout, stderr)
