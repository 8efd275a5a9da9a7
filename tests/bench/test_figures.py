# SPDX-License-Identifier: Apache-2.0
"""The bench itself: how it evaluates figures, and that the page shows the stored results."""

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
    """Every row_*.py is a measurement, and no two have the same order."""
    found = measurements()
    files = {path.stem.removeprefix("row_") for path in (ROOT / "bench").glob("row_*.py")}
    assert {measurement.name for measurement in found} == files
    orders = [measurement.order for measurement in found]
    assert orders == sorted(set(orders))


def test_a_goal_is_met_up_to_its_value() -> None:
    """A value up to the goal meets it. A row without a goal neither meets nor misses one.

    Ratios are ours divided by theirs.
    """
    beside = (Beside(name="theirs", value=4.0), Beside(name="absent", value=None, why="not here"))
    row = Row(key="k", what="w", value=2.0, unit="ns", goal=2.0, beside=beside)
    assert row.passed is True
    stored = row_json(row)
    assert [peer["ratio"] for peer in stored["beside"]] == [0.5, None]
    assert stored["of_goal"] == 1.0
    assert Row(key="k", what="w", value=2.1, unit="ns", goal=2.0).passed is False
    assert Row(key="k", what="w", value=2.1, unit="ns").passed is None


def test_a_percentile_is_a_sample() -> None:
    """Of 200 samples, two are above the 99th percentile and 100 above the 50th."""
    samples = [float(number) for number in range(200)]
    assert percentile(samples, 99) == 197.0
    assert percentile(samples, 50) == 99.0
    assert percentile([3.0], 99) == 3.0


def test_every_program_is_first_once() -> None:
    """Every program has a sample in each round, and differences are taken within a round."""
    order: list[str] = []

    def cost(name: str) -> float:
        order.append(name)
        return len(order) * 10.0 + (name == "b")

    samples = take_turns(["a", "b", "c"], cost, 3)
    assert "".join(order) == "abcbcacab"
    assert over(samples, "b", "a") == [11.0, -19.0, 11.0]


@pytest.mark.parametrize(
    ("kvm", "tcg", "verified", "expected"),
    [(2, 0, 2, 2), (2, 1, 3, -1), (2, 0, 1, -1), (0, 0, 0, 0)],
)
def test_verified_vms_are_counted_only_when_all_are(
    kvm: int, tcg: int, verified: int, expected: int
) -> None:
    """An answer counts its VMs only if all of them are KVM and verified; otherwise it counts -1."""
    types = ["kvm"] * kvm + ["tcg"] * tcg
    lines = [
        f'kubevirt_vmi_hypervisor_info{{name="{number}",hypervisor_type="{kind}"}} 1.0\n'
        f'kubevirt_vmi_hypervisor_verified{{name="{number}"}} {float(number < verified)}\n'
        for number, kind in enumerate(types)
    ]
    answer = Answer(status=200, body="".join(lines).encode(), seconds=0.0)
    assert answer.verified_kvm() == expected


def test_an_answer_in_pieces() -> None:
    """An answer is complete with its last byte, and not before."""
    sent = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n"
    bytes_ = AnswerBytes()
    for byte in sent:
        assert not bytes_.complete
        bytes_.add(bytes([byte]))
    assert bytes_.complete
    assert bytes_.answer(0.5).value("a") == 1.0


def test_worse_is_beyond_the_tolerance_only() -> None:
    """A ratio at its limit passes. A higher one is reported."""
    stored = dict.fromkeys(GUARDED, 2.0)
    at_limit = {name: 2.0 * guarded.tolerance for name, guarded in GUARDED.items()}
    assert worse(at_limit, stored) == []
    beyond = {name: value * 1.01 for name, value in at_limit.items()}
    assert len(worse(beyond, stored)) == len(GUARDED)


def test_numbers_have_three_digits() -> None:
    """Numbers have three significant digits; zero and numbers from 100 have no decimals."""
    assert [number(value) for value in (0.0, 0.01234, 12.34, 123.4, 1521.0)] == [
        "0", "0.0123", "12.3", "123", "1521",
    ]  # fmt: skip


def test_a_free_port_is_one() -> None:
    """A free port is a valid port number, which the agent can be given before it runs."""
    assert 0 < free_port() < 65536


def test_the_page_is_what_the_stored_results_say() -> None:
    """docs/benchmarks.md shows exactly the stored results, because ``make bench`` writes both."""
    assert DOCUMENT.read_text() == document(json.loads(RESULTS.read_text()))
