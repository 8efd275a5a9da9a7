# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand: defects that no test noticed once, and where each has to be noticed now."""

from mutants.hand_made import HandMade
from mutants.in_the_cause import IN_THE_CAUSE
from mutants.in_the_explanation import IN_THE_EXPLANATION
from mutants.in_the_judgement import IN_THE_ACCOUNTS, IN_THE_JUDGEMENT
from mutants.in_the_ledger import IN_THE_KERNEL, IN_THE_READER

IN_THE_WATCH = (
    HandMade(
        file="probes/vmi/kube/timing.py",
        text='"""Record that a watch delivers, which ends all earlier failures."""\n'
        "        self._failures = 0\n",
        replacement='"""Record that a watch delivers, which ends all earlier failures."""\n',
        test="tests/unit/test_kube_timing.py::test_pauses",
        breaks="failures before a good watch make the pauses after it longer",
    ),
    HandMade(
        file="probes/vmi/kube/watch.py",
        text="    def _recovered(self) -> None:\n        self._backoff.recovered()\n",
        replacement="    def _recovered(self) -> None:\n",
        test="tests/cluster/test_watch_recovery.py"
        "::test_failures_before_a_good_watch_are_forgotten",
        breaks="a good watch is not reported to the pauses",
    ),
    HandMade(
        file="probes/vmi/kube/watch.py",
        text="        self._list_unpaged = False\n        self._resource_version",
        replacement="        self._resource_version",
        test="tests/cluster/test_watch_faults.py::test_pages_that_expire_are_read_in_one",
        breaks="after pages that expired every list is read in one piece for ever",
    ),
)

TABLE = (
    *IN_THE_KERNEL,
    *IN_THE_READER,
    *IN_THE_JUDGEMENT,
    *IN_THE_ACCOUNTS,
    *IN_THE_CAUSE,
    *IN_THE_EXPLANATION,
    *IN_THE_WATCH,
)

NOT_THERE = (
    "what `departed` counts",
    "what `adopt` does with a process that has a record",
    "what a removal does with `exec_ns`",
    "how long `_first_ns` and `_unmarked` grow",
)
"""Defects of code that no longer exists: no mutant can be made of them."""
