# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand: defects that no test noticed once, and where each has to be noticed now."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HandMade:
    """One exchange of a text that stands in the file exactly once."""

    file: str
    text: str
    replacement: str
    test: str
    """The test that has to fail, as pytest names it."""
    breaks: str
    """What goes wrong, in a few words."""


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

IN_THE_JUDGEMENT = (
    HandMade(
        file="probes/host/hypervisors.py",
        text="and all(status.attached or status.nothing_to_observe for status in forms)",
        replacement="and any(status.attached or status.nothing_to_observe for status in forms)",
        test="tests/unit/test_evidence.py::test_every_hook_of_every_accelerator_has_to_watch",
        breaks="mshv counts as watched by any instead of by all of its hooks",
    ),
    HandMade(
        file="probes/host/hypervisors.py",
        text="    if all(status.nothing_to_observe for forms in wanted for status in forms):",
        replacement="    if all(status.inactive for forms in wanted for status in forms):",
        test="tests/unit/test_evidence.py::test_a_hook_that_nothing_needs_does_not_watch",
        breaks="the silence of a hook that nothing needs proves that no guest ran",
    ),
    HandMade(
        file="probes/report/hook_history.py",
        text="yield entry.counts[place] - old.counts[place]",
        replacement="yield entry.counts[place]",
        test="tests/unit/test_hook_history.py::"
        "test_an_old_record_proves_a_hook_only_by_what_it_adds",
        breaks="what an earlier attachment counted proves that the present one fires",
    ),
    HandMade(
        file="ebpf/programs.py",
        text="return total if total or (counted and self._misses_counted) else None",
        replacement="return total if counted else None",
        test="tests/unit/test_programs.py::test_a_zero_counts_only_where_the_kernel_counts",
        breaks="a kernel that does not count skipped runs is said to skip none",
    ),
    HandMade(
        file="probes/judge/verdict.py",
        text="if ledger and ledger.count(counter):",
        replacement="if ledger and (ledger.count(counter) or ledger.count(USERSPACE_EXITS)):",
        test="tests/unit/test_verdict.py::test_rule",
        breaks="any return of KVM_RUN, a refused one too, is taken for a proof",
    ),
    HandMade(
        file="probes/host/procfs.py",
        text='_QEMU_PROGRAMS = ("qemu-system-", "qemu-kvm")',
        replacement='_QEMU_PROGRAMS = ("qem",)',
        test="tests/unit/test_procfs.py::test_system_emulators_by_name",
        breaks="qemu-nbd, qemu-img and others are taken for VMs",
    ),
    HandMade(
        file="probes/host/thread_tables.py",
        text='name = "fd" if tid == tgid else f"task/{tid}/fd"',
        replacement='name = "fd"',
        test="tests/unit/test_host.py::test_descriptors_of_another_threads_table",
        breaks="descriptors in the tables of other threads are not seen",
    ),
    HandMade(
        file="probes/judge/evidence.py",
        text="entry is None or entry.first_ns < start_monotonic_ns",
        replacement="entry is None",
        test="tests/unit/test_evidence.py::test_entry_of_a_predecessor_is_ignored",
        breaks="the record of a former owner of the number counts for the process",
    ),
    HandMade(
        file="probes/report/collector.py",
        text=" or vmis != self._vmis:",
        replacement=":",
        test="tests/unit/test_tracker.py::test_names_are_made_again_when_only_the_vmis_change",
        breaks="names are not made again when only the VMIs change",
    ),
    HandMade(
        file="probes/judge/changes.py",
        text="state=tracked.state if tracked else State.NEW",
        replacement="state=State.FOLLOWED",
        test="tests/unit/test_tracker.py::test_a_mark_is_not_lost_while_the_process_cannot_be_read",
        breaks="a mark is lost where there is no time for its process",
    ),
    HandMade(
        file="probes/judge/count_sums.py",
        text="    if now[0] < before[0]:\n        return before\n",
        replacement="",
        test="tests/unit/test_count_sums.py::test_exits_that_begin_again",
        breaks="a new vCPU takes over the counts of the one before it",
    ),
    HandMade(
        file="probes/judge/count_sums.py",
        text="earlier if later < earlier else 0 for",
        replacement="0 for",
        test="tests/unit/test_count_sums.py::test_a_count_that_was_cleared",
        breaks="a statistic that root clears makes its counter fall",
    ),
    HandMade(
        file="probes/judge/count_sums.py",
        text="all(map(operator.ge, now, before))",
        replacement="True or all(now)",
        test="tests/unit/test_exit_counts.py::test_a_vm_that_is_made_again_unseen",
        breaks="a count that has fallen is taken for the same vCPU's",
    ),
    HandMade(
        file="probes/judge/exit_counts.py",
        text=" or measures != self.measures:",
        replacement=":",
        test="tests/unit/test_count_sums.py::test_other_measures_change_nothing",
        breaks="counts of different things are added up",
    ),
    HandMade(
        file="probes/judge/guest_time.py",
        text="highest_s = max(highest_s, read_s or 0.0)",
        replacement="highest_s = read_s or 0.0",
        test="tests/unit/test_guest_time.py::test_guest_time_never_falls",
        breaks="the CPU time in guest code falls while its process lives",
    ),
    HandMade(
        file="probes/judge/guest_time.py",
        text="        if highest_s:\n",
        replacement="        if read_s is not None:\n",
        test="tests/unit/test_guest_time.py::test_guest_time_never_falls",
        breaks="a kernel that does not account guest time makes a false 0",
    ),
    HandMade(
        file="probes/host/vcpu_counts.py",
        text="places.keys() >= {*choice}",
        replacement="not places.keys().isdisjoint(choice)",
        test="tests/unit/test_vcpu_counts.py::test_half_of_a_sum_is_no_count",
        breaks="a count that lacks one of its statistics is too low or has no value at all",
    ),
    HandMade(
        file="probes/host/vcpu_counts.py",
        text=" or scale.unit is not count.group.unit",
        replacement="",
        test="tests/unit/test_vcpu_counts.py::test_units",
        breaks="cycles are exported as seconds",
    ),
)

_COUNTS = "probes/judge/exit_counts.py"
_ACCOUNT = "tests/unit/test_exit_counts.py::test_"
_REFRESH = "tests/unit/test_exit_collector.py::test_"

IN_THE_ACCOUNTS = (
    HandMade(
        file=_COUNTS,
        text="            base = added(base, count)\n            gone.append",
        replacement="            gone.append",
        test=f"{_ACCOUNT}a_vcpu_that_is_plugged",
        breaks="the exits of a vCPU that is gone leave the total",
    ),
    HandMade(
        file=_COUNTS,
        text="            base = added(base, begun_again(count, new[descriptor]))\n",
        replacement="",
        test=f"{_ACCOUNT}a_vm_that_is_made_again_unseen",
        breaks="the exits of a vCPU that begins again leave the total",
    ),
    HandMade(
        file=_COUNTS,
        text="base = added(subtracted(base, back), begun_again(back, count))",
        replacement="pass",
        test=f"{_ACCOUNT}a_vcpu_that_is_unplugged_and_plugged_again",
        breaks="a vCPU that is plugged again counts twice",
    ),
    HandMade(
        file=_COUNTS,
        text="not listing.covers_every_vcpu or ",
        replacement="",
        test=f"{_ACCOUNT}source",
        breaks="statistics are the source although a vCPU has none",
    ),
    HandMade(
        file=_COUNTS,
        text=" or vcpus > listing.vcpus:",
        replacement=":",
        test=f"{_ACCOUNT}vcpus_in_the_table_of_another_thread",
        breaks="vCPUs in the tables of other threads do not matter for the source",
    ),
    HandMade(
        file=_COUNTS,
        text="if created is None:\n            created = self.created",
        replacement="if created is None:\n            created = Created()",
        test=f"{_REFRESH}an_unreadable_ledger_counts_nothing_twice",
        breaks="all exits count twice after a ledger that could not be read",
    ),
    HandMade(
        file=_COUNTS,
        text="        created = Created(created.vms + 1, created.vcpus + len(new))",
        replacement="        pass",
        test=f"{_ACCOUNT}a_vm_that_is_made_again_between_ledger_and_statistics",
        breaks="a VM that is reset during a refresh counts twice",
    ),
    HandMade(
        file=_COUNTS,
        text="account._replace(vmm=vmm) if account.vmm == vmm else None",
        replacement="account",
        test=f"{_REFRESH}a_reused_number_begins_another_account",
        breaks="a process takes over the account of the former owner of its number",
    ),
    HandMade(
        file=_COUNTS,
        text="            and (readings[tgid].counts is None or account.uncounted_vcpus > 0)",
        replacement="            and account.uncounted_vcpus > 0",
        test=f"{_REFRESH}a_failed_reading_keeps_total_and_source",
        breaks="statistics that have disappeared are no failure",
    ),
    HandMade(
        file="probes/judge/exit_hook.py",
        text="account.source is ExitSource.TRACEPOINT\n        if",
        replacement="False\n        if",
        test=f"{_REFRESH}one_vm_without_statistics_needs_the_hook",
        breaks="the hook is detached although it counts a VM",
    ),
    HandMade(
        file="probes/judge/exit_hook.py",
        text="return process.statistics < (process.vcpus or 0)",
        replacement="return False",
        test=f"{_ACCOUNT}who_needs_the_hook",
        breaks="the hook is detached although only it can prove that a VM runs",
    ),
    HandMade(
        file="probes/host/statistics_listing.py",
        text="self.unsettled = changed and listing.vcpus > len(listing.fds)",
        replacement="self.unsettled = False",
        test="tests/unit/test_statistics_reader.py"
        "::test_a_vcpu_whose_statistics_open_a_moment_later",
        breaks="a vCPU whose statistics open after the listing is never counted",
    ),
    HandMade(
        file="probes/report/collector.py",
        text="self._ledger.need([KVM_EXIT] if needed else [])",
        replacement="self._ledger.need([KVM_EXIT])",
        test=f"{_REFRESH}statistics_of_all_vms_release_the_hook",
        breaks="the hook stays attached although nothing needs it",
    ),
)

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
    *IN_THE_WATCH,
)

NOT_THERE = (
    "what `departed` counts",
    "what `adopt` does with a process that has a record",
    "what a removal does with `exec_ns`",
    "how long `_first_ns` and `_unmarked` grow",
)
"""Defects of code that no longer exists: no mutant can be made of them."""
