# SPDX-License-Identifier: Apache-2.0
"""The validity of a certificate, read from its PEM text."""

import datetime
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from probes.serve.http.certificate import Validity, validity

AUTHORITY = trustme.CA()


def pem(begin: datetime.datetime, end: datetime.datetime) -> bytes:
    issued = AUTHORITY.issue_cert("hvprobe", not_before=begin, not_after=end)
    return issued.cert_chain_pems[0].bytes()


def utc(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime.datetime:
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)


FIRST = pem(utc(2026, 1, 2, 3, 4, 5), utc(2049, 12, 31, 23, 59, 59))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (utc(2026, 1, 2, 3, 4, 5), utc(2026, 3, 1)),
        (utc(1999, 12, 31), utc(2049, 12, 31, 23, 59, 59)),
        (utc(2050, 1, 1), utc(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_dates(begin: datetime.datetime, end: datetime.datetime) -> None:
    """Dates with two-digit and four-digit years are read to the second."""
    found = validity(pem(begin, end))
    assert found == Validity(from_unix_s=begin.timestamp(), until_unix_s=end.timestamp())


def test_the_first_of_several_counts() -> None:
    """The first certificate, the server's own, counts; text and intermediates do not."""
    other = pem(utc(2000, 1, 1), utc(2001, 1, 1))
    assert validity(b"subject=CN = x\r\n" + FIRST + other) == validity(FIRST)


def test_a_certificate_outside_its_validity() -> None:
    """The message gives the time of the start or the end. Both bounds are valid."""
    valid = Validity(from_unix_s=100.0, until_unix_s=200.0)
    assert valid.wrong_at(99) == "not valid before 1970-01-01T00:01:40Z"
    assert valid.wrong_at(100) is None
    assert valid.wrong_at(200) is None
    assert valid.wrong_at(201) == "expired at 1970-01-01T00:03:20Z"


@pytest.mark.parametrize("text", [b"", b"soon", FIRST[:100], FIRST.replace(b"MII", b"AAA", 1)])
def test_no_certificate(text: bytes, tmp_path: Path) -> None:
    """Text that is no certificate raises ``ValueError`` with a message that says so."""
    with pytest.raises(ValueError, match="certificate"):
        validity(text)


@given(st.data())
def test_any_damage_is_a_value_error(data: st.DataObject) -> None:
    """Damaged bytes give an answer or a ``ValueError``, and no other exception."""
    at = data.draw(st.integers(30, len(FIRST) - 40))
    put = data.draw(st.binary(max_size=40))
    message = ""
    try:
        validity(FIRST[:at] + put + FIRST[at + len(put) :])
    except ValueError as err:
        message = str(err)
    assert message in ("", "it contains no certificate", "its certificate is damaged")
