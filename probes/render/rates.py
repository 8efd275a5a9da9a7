# SPDX-License-Identifier: Apache-2.0
"""Two totals of a counter → a rate. Pure.

Owns when there is a rate at all. Must not know what is counted.
"""


def per_second(before: int | None, now: int | None, seconds: float) -> float | None:
    """Events per second between two readings; None: there is no rate.

    That is where a total is missing, where no time has passed (the clock was set), and where the
    total went back, because the hook was attached again or the process was replaced.
    """
    if before is None or now is None or seconds <= 0 or now < before:
        return None
    return (now - before) / seconds
