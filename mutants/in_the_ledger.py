# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand in the ledger: the programs in the kernel, and their reader."""

from mutants.hand_made import HandMade

_C = "ebpf/ledger.bpf.c"
_ARRAYS = "ebpf/ledger_arrays.py"
_CODE = "tests/unit/test_ledger_code.py::test_scenario"
_TABLES = "tests/unit/test_tables.py::test_"

IN_THE_KERNEL = (
    HandMade(
        file=_C,
        text="\t\tgive_slot_back(slot);\n\telse if (record)",
        replacement="\t\trecord = NULL;\n\telse if (record)",
        test=f"{_CODE}[two_threads_race_for_a_record]",
        breaks="of two threads that race for a record the second keeps its slot",
    ),
    HandMade(
        file=_C,
        text="\trecord->leader_exit_ns = 0;\n",
        replacement="",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a removed record leaves the end of its main thread to the next one",
    ),
    HandMade(
        file=_C,
        text="\trecord->vms_created = 0;\n",
        replacement="",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a removed record leaves its VMs to the next one",
    ),
    HandMade(
        file=_C,
        text="\trecord->vcpus_created = 0;\n",
        replacement="",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a removed record leaves its vCPUs to the next one",
    ),
    HandMade(
        file=_C,
        text="for (u32 cpu = 0; cpu < LEDGER_CPUS; cpu++) {",
        replacement="for (u32 cpu = 0; cpu < 1; cpu++) {",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a removed record leaves the counters of all CPUs but the first",
    ),
    HandMade(
        file=_C,
        text="\t\tif (place && *(volatile u64 *)&place->owner == ((u64)slot << 32 | tgid))\n",
        replacement="\t\tif (place && !tgid)\n",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a removed process keeps its places",
    ),
    HandMade(
        file=_C,
        text="\t\tif (place && *(volatile u64 *)&place->owner == ((u64)slot << 32 | tgid))\n",
        replacement="\t\tif (place)\n",
        test=f"{_CODE}[a_place_belongs_to_the_first]",
        breaks="a removal drives another process from its place",
    ),
    HandMade(
        file=_C,
        text="*(volatile u64 *)&place->owner == ((u64)slot << 32 | tgid))\n",
        replacement="(u32)place->owner == tgid)\n",
        test=f"{_CODE}[only_its_own_removal_releases_a_place]",
        breaks="two removals may release one place, and the second drives another process from it",
    ),
    HandMade(
        file=_C,
        text="\t\tplace->activity = (struct ledger_cpu_activity){};\n",
        replacement="",
        test=f"{_CODE}[a_released_place_is_cleared_before_it_is_taken]",
        breaks="the next owner of a place gets the counts of the one before",
    ),
    HandMade(
        file=_C,
        text="\tif (!record || record->tgid != tgid)\n",
        replacement="\tif (!record)\n",
        test=f"{_CODE}[a_slot_of_another_process_is_not_used]",
        breaks="a process takes a place, or counts, for the slot of another one",
    ),
    HandMade(
        file=_C,
        text="\tmark(&record->in_slot);\n",
        replacement="",
        test=f"{_CODE}[exits_on_all_cpus_are_exact]",
        breaks="exits of a process whose place is taken are not read",
    ),
    HandMade(
        file=_C,
        text="\tif (record->in_places || record->in_slot)\n",
        replacement="\tif (record->in_slot)\n",
        test=f"{_CODE}[a_removal_without_exits_touches_no_cpu]",
        breaks="a removed process that counted in places only keeps them",
    ),
    HandMade(
        file=_C,
        text="\t\t    !slots.delete(&tgid))",
        replacement="\t\t    (slots.delete(&tgid), true))",
        test=f"{_CODE}[a_deletion_that_fails]",
        breaks="a removal goes on after the deletion has failed",
    ),
    HandMade(
        file=_C,
        text="(which == REMOVE_ANY || record->leader_exit_ns)",
        replacement="(which == REMOVE_ANY || which == REMOVE_ENDED)",
        test=f"{_CODE}[a_freed_number_that_is_used_again]",
        breaks="the end of a former owner removes the record of the new one",
    ),
    HandMade(
        file=_C,
        text="\t\tif (which == REMOVE_ANY)\n\t\t\tcount_total(LEDGER_DROPPED);\n",
        replacement="",
        test=f"{_CODE}[another_removal_has_the_claim]",
        breaks="a record that another removal takes along is not counted as a loss",
    ),
    HandMade(
        file=_C,
        text="\tclaims.delete(&tgid);\n}",
        replacement="}",
        test=f"{_CODE}[a_removal_leaves_nothing]",
        breaks="a claim stays, so the next record of the number is never removed",
    ),
    HandMade(
        file=_C,
        text="\tif (shows == SHOWS_VCPU && !reserved_slots.pop(slot))",
        replacement="\tif (!reserved_slots.pop(slot))",
        test=f"{_CODE}[half_is_kept_for_vcpus]",
        breaks="processes that only make VMs take the slots of those that run vCPUs",
    ),
    HandMade(
        file="ebpf/processes.bpf.c",
        text="\tforget(number, REMOVE_ANY);\n",
        replacement="",
        test=f"{_CODE}[lives_are_marked]",
        breaks="a forked process takes over the record of its number",
    ),
    HandMade(
        file="ebpf/processes.bpf.c",
        text="\tforget(tgid, REMOVE_ANY);\n",
        replacement="",
        test=f"{_CODE}[lives_are_marked]",
        breaks="an exec keeps the record of the program before",
    ),
    HandMade(
        file="ebpf/processes.bpf.c",
        text="\tif ((u32)ids != tgid)\n\t\treturn 0;\n",
        replacement="",
        test=f"{_CODE}[only_the_main_thread_ends_the_process]",
        breaks="the end of any thread counts as the end of its process",
    ),
    HandMade(
        file="ebpf/vm_exits.bpf.c",
        text="if (error >= 0 && reason",
        replacement="if (reason",
        test=f"{_CODE}[returns_that_prove_a_run]",
        breaks="a refused KVM_RUN counts as completed",
    ),
    HandMade(
        file="ebpf/vm_exits.bpf.c",
        text=" && reason != KVM_EXIT_INTERNAL_ERROR)",
        replacement=")",
        test=f"{_CODE}[returns_that_prove_a_run]",
        breaks="a KVM_RUN that ended in an internal error counts as completed",
    ),
)

IN_THE_READER = (
    HandMade(
        file="ebpf/maps.py",
        text="        for block in range(self._blocks):\n"
        "            start = block * self._block_words + record",
        replacement="        for block in range(1):\n"
        "            start = block * self._block_words + record",
        test="tests/unit/test_maps.py::test_clearing_a_record_clears_it_in_all_blocks",
        breaks="MappedArray.clear clears the counters of CPU 0 only",
    ),
    HandMade(
        file=_ARRAYS,
        text="for _ in range(MAX_READS):",
        replacement="for _ in range(1):",
        test=f"{_TABLES}records_that_change_hands_are_read_again",
        breaks="records that change hands are never read again",
    ),
    HandMade(
        file=_ARRAYS,
        text="after = self._records.words(self._records.used())",
        replacement="after = self._records.words(len(before) // RECORD_WORDS)",
        test=f"{_TABLES}a_record_above_those_in_use_is_noticed",
        breaks="a record that lands above all others during a reading is missed",
    ),
    HandMade(
        file=_ARRAYS,
        text="        self._records.write(slot, _FIRST_NS, 0)\n        self.release(tgid, slot)\n",
        replacement="        self._records.write(slot, _FIRST_NS, 0)\n",
        test=f"{_TABLES}a_removed_record_leaves_nothing",
        breaks="the reader's removal leaves the places of the process",
    ),
    HandMade(
        file=_ARRAYS,
        text="            if held == owner:\n",
        replacement="            if held:\n",
        test=f"{_TABLES}a_place_of_another_process_stays",
        breaks="the reader's removal drives another process from its place",
    ),
    HandMade(
        file=_ARRAYS,
        text=" if other == owner)\n",
        replacement=")\n",
        test=f"{_TABLES}exits_are_those_in_places_and_at_the_slot",
        breaks="the counts of a place go to a process that does not own it",
    ),
    HandMade(
        file="ebpf/tables.py",
        text="return slot if self._arrays.first_ns(slot) == first_ns else None",
        replacement="return slot",
        test=f"{_TABLES}only_the_record_that_is_meant_is_removed",
        breaks="the reader removes whatever record the number has by now",
    ),
    HandMade(
        file="ebpf/tables.py",
        text="if slot is not None and self._slots.delete(key):",
        replacement="if slot is not None and (self._slots.delete(key) or True):",
        test=f"{_TABLES}a_deletion_that_fails_removes_nothing",
        breaks="the reader's removal goes on after the deletion has failed",
    ),
    HandMade(
        file=_ARRAYS,
        text="        for array in (self._records, self._activity, self._cpu_activity):\n",
        replacement="        for array in (self._activity, self._cpu_activity):\n",
        test=f"{_TABLES}a_removed_record_leaves_nothing",
        breaks="the reader's removal leaves VMs and vCPUs to the next record",
    ),
    HandMade(
        file=_ARRAYS,
        text="        for array in (self._records, self._activity, self._cpu_activity):\n",
        replacement="        for array in (self._records, self._cpu_activity):\n",
        test=f"{_TABLES}a_removed_record_leaves_nothing",
        breaks="the reader's removal leaves the counters to the next record",
    ),
    HandMade(
        file=_ARRAYS,
        text="        for array in (self._records, self._activity, self._cpu_activity):\n",
        replacement="        for array in (self._records, self._activity):\n",
        test=f"{_TABLES}a_removed_record_leaves_nothing",
        breaks="the reader's removal leaves the exits at its slot to the next record",
    ),
    HandMade(
        file="ebpf/tables.py",
        text="            self._arrays.release(tgid, slot)\n",
        replacement="",
        test=f"{_TABLES}a_slot_is_given_back_once_and_after_a_wait",
        breaks="a place taken during the reader's removal is never released",
    ),
    HandMade(
        file="ebpf/tables.py",
        text="        wait_for_running_programs()\n        while self._removed:",
        replacement="        while self._removed:",
        test=f"{_TABLES}a_slot_is_given_back_once_and_after_a_wait",
        breaks="a slot goes to the next process while a program may still count in it",
    ),
)
