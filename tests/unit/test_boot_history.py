# SPDX-License-Identifier: Apache-2.0
"""The record of how often guests had to be booted."""

import threading
from pathlib import Path

import pytest

from vmtest import boot_history, support_matrix
from vmtest.boot_history import KEPT, Run, add, last_runs, summary
from vmtest.cache import CACHE_VARIABLE, cache_directory

FIRST = "kernel-0 on 1970-01-01 (3 boots)"
SECOND = "kernel-1 on 1970-01-02 (2 boots)"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


def runs(*boots: int) -> list[Run]:
    return [
        Run(kernel=f"kernel-{number}", ended_unix_s=86400.0 * number, boots=count)
        for number, count in enumerate(boots)
    ]


def test_runs_are_kept_in_order() -> None:
    """The last runs come back, the oldest first."""
    assert last_runs() == []
    for kernel, boots in (("5.10", 1), ("6.1", 3), ("7.2", 1)):
        add(kernel, boots)
    assert [(run.kernel, run.boots) for run in last_runs()] == [("5.10", 1), ("6.1", 3), ("7.2", 1)]
    assert [run.kernel for run in last_runs(2)] == ["6.1", "7.2"]


def test_the_record_is_bounded() -> None:
    """However many guests run, only the last KEPT are remembered."""
    for number in range(KEPT + 3):
        add(f"kernel-{number}", 1)
    kept = last_runs(2 * KEPT)
    assert len(kept) == KEPT
    assert kept[0].kernel == "kernel-3"


def test_a_damaged_line_costs_only_itself() -> None:
    """A line that is no run, or one of a later version, is left out."""
    add("6.1", 2)
    place = next(cache_directory().glob("*.jsonl"))
    place.write_text(f'{{"kernel": "5\n[]\n{{"kernel": "8", "more": 1}}\n{place.read_text()}')
    assert [run.kernel for run in last_runs()] == ["6.1"]


def test_guests_that_end_at_once_are_all_recorded() -> None:
    """Runs of several guests at once do not overwrite each other's lines."""
    ending = [threading.Thread(target=add, args=(f"kernel-{each}", 1)) for each in range(8)]
    for thread in ending:
        thread.start()
    for thread in ending:
        thread.join()
    assert {run.kernel for run in last_runs()} == {f"kernel-{each}" for each in range(8)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "boots repeated: no guest has run yet"),
        (runs(1), "boots repeated: 0 of the only run"),
        (runs(1, 1, 1), "boots repeated: 0 of the last 3"),
        (runs(1, 2), f"boots repeated: 1 of the last 2: {SECOND}"),
        (
            runs(3, 2),
            f"boots repeated: 2 of the last 2: kernel-0 on 1970-01-01 (3 boots), {SECOND}",
        ),
    ],
)
def test_summary(given: list[Run], expected: str) -> None:
    """One line says how many runs were repeated, of how many, and which."""
    assert summary(given) == expected


def test_the_document_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/kernels.md says how often a boot had to be repeated."""
    add("6.1-arm64", 2)
    monkeypatch.setattr(support_matrix, "ROOT", tmp_path)
    monkeypatch.setattr(support_matrix, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(support_matrix, "HOST", tmp_path / "results/host")
    monkeypatch.setattr(support_matrix, "DOCUMENT", tmp_path / "kernels.md")
    monkeypatch.setattr(support_matrix, "write_host_facts", lambda: None)
    support_matrix.main()
    text = (tmp_path / "kernels.md").read_text()
    assert f"\n{boot_history.summary(last_runs())}.\n" in text
    assert "1 of the only run: 6.1-arm64 on " in text
