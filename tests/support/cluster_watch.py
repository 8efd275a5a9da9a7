# SPDX-License-Identifier: Apache-2.0
"""How tests/cluster drive a VmiWatch: quick timing, and waiting for what its thread does."""

from __future__ import annotations

import threading
from collections.abc import Callable

from probes.vmi.kube.timing import WatchTiming
from probes.vmi.kube.watch import VmiWatch

NODE = "node-a"
QUICK = WatchTiming(
    backoff_base_s=0.02,
    backoff_cap_s=0.2,
    connect_timeout_s=5.0,
    answer_deadline_s=5.0,
    idle_deadline_s=20.0,
    first_watch_s=60,
    watch_timeout_s=60,
    page_limit=3,
)

Begin = Callable[..., VmiWatch]


def until(condition: Callable[[], object], what: str, deadline_s: float = 10.0) -> None:
    """Wait for a condition that another thread makes true."""
    pause = threading.Event()
    for _ in range(int(deadline_s / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError(f"{what}: not within {deadline_s} s")


def names(watch: VmiWatch) -> set[str]:
    """`namespace/name` of every VMI the watch knows."""
    return {"/".join(key) for key in watch.index().vmis}


def knows(watch: VmiWatch, name: str) -> bool:
    """Whether the watch knows the VMI `namespace/name`."""
    return name in names(watch)
