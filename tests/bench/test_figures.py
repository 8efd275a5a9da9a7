# SPDX-License-Identifier: Apache-2.0
"""The bench itself: what it makes of figures, and that what is stored is what is shown."""

import json
from pathlib import Path

import pytest

from bench.agent import Answer, AnswerBytes, free_port
from bench.document import DOCUMENT, document
from bench.guard import GUARDED, worse
from bench.results import RESULTS, number, row_json
from bench.rows import Beside, Row, measurements, percentile
from bench.turns import over, take_turns

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_file_is_found_once_and_in_order() -> None:
    """A new row is one file."""
    found = measurements()
    files = {it.stem.removeprefix("row_") for it in (ROOT / "bench").glob("row_*.py")}
    assert {it.name for it in found} == files
    orders = [it.order for it in found]
    assert orders == sorted(set(orders))


def test_a_goal_is_met_up_to_its_value() -> None:
    """Less is better; a row without a goal is neither met nor missed; ratios are ours to theirs."""
    beside = (Beside(name="theirs", value=4.0), Beside(name="absent", value=None, why="not here"))
    row = Row(key="k", what="w", value=2.0, unit="ns", goal=2.0, beside=beside)
    assert row.passed is True
    told = row_json(row)
    assert [it["ratio"] for it in told["beside"]] == [0.5, None]
    assert told["of_goal"] == 1.0
    assert Row(key="k", what="w", value=2.1, unit="ns", goal=2.0).passed is False
    assert Row(key="k", what="w", value=2.1, unit="ns").passed is None


def test_a_percentile_is_a_sample() -> None:
    """Of 200 samples two are above the 99th percentile, 100 above the 50th."""
    samples = [float(it) for it in range(200)]
    assert percentile(samples, 99) == 197.0
    assert percentile(samples, 50) == 99.0
    assert percentile([3.0], 99) == 3.0


def test_everybody_is_first_once() -> None:
    """Each has a sample of every round, and differences are within a round."""
    asked: list[str] = []

    def cost(name: str) -> float:
        asked.append(name)
        return len(asked) * 10.0 + (name == "b")

    samples = take_turns(["a", "b", "c"], cost, 3)
    assert "".join(asked) == "abcbcacab"
    assert over(samples, "b", "a") == [11.0, -19.0, 11.0]


@pytest.mark.parametrize(
    ("kvm", "tcg", "verified", "expected"),
    [(2, 0, 2, 2), (2, 1, 3, -1), (2, 0, 1, -1), (0, 0, 0, 0)],
)
def test_verified_vms_are_counted_only_when_all_are(
    kvm: int, tcg: int, verified: int, expected: int
) -> None:
    """An answer that shows any VM otherwise is not a smaller number of right ones."""
    types = ["kvm"] * kvm + ["tcg"] * tcg
    lines = [
        f'kubevirt_vmi_hypervisor_info{{name="{at}",hypervisor_type="{it}"}} 1.0\n'
        f'kubevirt_vmi_hypervisor_verified{{name="{at}"}} {float(at < verified)}\n'
        for at, it in enumerate(types)
    ]
    answer = Answer(status=200, body="".join(lines).encode(), seconds=0.0)
    assert answer.verified_kvm() == expected


def test_an_answer_in_pieces() -> None:
    """It is complete with its last byte, and not before."""
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n"
    bytes_ = AnswerBytes()
    for byte in whole:
        assert not bytes_.complete
        bytes_.add(bytes([byte]))
    assert bytes_.complete
    assert bytes_.answer(0.5).value("a") == 1.0


def test_worse_is_beyond_the_tolerance_only() -> None:
    """A ratio at its limit passes, one above is named with both figures."""
    stored = dict.fromkeys(GUARDED, 2.0)
    at_limit = {name: 2.0 * it.tolerance for name, it in GUARDED.items()}
    assert worse(at_limit, stored) == []
    beyond = {name: value * 1.01 for name, value in at_limit.items()}
    assert len(worse(beyond, stored)) == len(GUARDED)


def test_numbers_have_three_digits() -> None:
    """And zero and large ones none behind the point."""
    assert [number(it) for it in (0.0, 0.01234, 12.34, 123.4, 1521.0)] == [
        "0", "0.0123", "12.3", "123", "1521",
    ]  # fmt: skip


def test_a_free_port_is_one() -> None:
    """The agent is told it before it runs."""
    assert 0 < free_port() < 65536


def test_the_page_is_what_the_stored_results_say() -> None:
    """docs/benchmarks.md quotes nothing else: make bench writes both."""
    assert DOCUMENT.read_text() == document(json.loads(RESULTS.read_text()))
