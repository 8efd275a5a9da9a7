# SPDX-License-Identifier: Apache-2.0
"""A fixed piece of pure Python work: the unit in which a scrape's CPU time is guarded.

It does what a scrape does, with nothing of hvprobe's: makes objects, looks them up, sorts, and
joins text. It must never change: stored ratios are in units of it.
"""

import time

ITEMS = 6000


def work_s() -> float:
    """CPU seconds that it takes in this thread now."""
    begun_s = time.thread_time()
    records = {number: (f"name-{number}", number * 7 % 1009) for number in range(ITEMS)}
    by_weight: dict[int, list[str]] = {}
    for name, weight in records.values():
        by_weight.setdefault(weight, []).append(name)
    ordered = sorted(records.items(), key=lambda item: (item[1][1], item[0]))
    text = "\n".join(f'{name}{{weight="{weight}"}} {number}' for number, (name, weight) in ordered)
    assert len(text.split("\n")) == sum(len(names) for names in by_weight.values())
    return time.thread_time() - begun_s
