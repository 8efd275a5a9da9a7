# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand in what is concluded: verdicts, counts and accounts of exits."""

from mutants.hand_made import HandMade

_IN_MEMORY = "tests/unit/test_statistics_in_kernel.py::test_"
_MEMORY = "tests/kernel/test_statistics_in_kernel.py::test_"

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
        file="ebpf/skipped_runs.py",
        text="return total if total or (counted and self.zero_is_known) else None",
        replacement="return total if counted else None",
        test="tests/unit/test_programs.py::test_a_zero_counts_only_where_the_kernel_counts",
        breaks="a kernel that does not count skipped runs is said to skip none",
    ),
    HandMade(
        file="ebpf/skipped_runs.py",
        text="        self._by_closed_links[program] += self._by_open_link.pop(program, 0)\n",
        replacement="        self._by_open_link.pop(program, 0)\n",
        test="tests/unit/test_programs.py::test_what_links_missed_is_added",
        breaks="what a link missed is forgotten when it is closed, and a counter falls",
    ),
    HandMade(
        file="ebpf/hook_set.py",
        text="attached = status.attached_at(point, monotonic_ns(), passed_over=_reason(failures))",
        replacement="attached = status.attached_at(point, monotonic_ns())",
        test="tests/unit/test_hook_set.py::test_links_stand_in_for_kprobes",
        breaks="doctor does not say why a link stands in for a kprobe",
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
        text="all(map(operator.ge, later, earlier))",
        replacement="(True or earlier or later)",
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
    HandMade(
        file="probes/host/statistics_in_kernel.py",
        text="known.proven = _in_order(before[tgid], between[tgid], after[tgid])",
        replacement="known.proven = True",
        test=f"{_IN_MEMORY}wrong_numbers_are_never_used",
        breaks="numbers are believed because they are in the kernel's memory",
    ),
    HandMade(
        file="probes/host/statistics_in_kernel.py",
        text="return reading is not None and any(counts[0] for counts in reading.counts or ())",
        replacement="return reading is not None",
        test=f"{_IN_MEMORY}a_guest_that_never_ran_proves_nothing",
        breaks="zeros that are elsewhere in memory prove that a count is there",
    ),
    HandMade(
        file="probes/host/statistics_in_kernel.py",
        text="if complete or all(found[begin:end]):",
        replacement="if True:",
        test=f"{_IN_MEMORY}statistics_that_have_moved_are_found_again",
        breaks="a count that was not found is that of an earlier refresh",
    ),
    HandMade(
        file="ebpf/statistics/statistics.bpf.c",
        text="	if (magic != ANON_INODE_FS_MAGIC)\n		return 0;\n",
        replacement="",
        test=f"{_MEMORY}only_the_named_file_of_the_named_process_is_read",
        breaks="a file of a tenant that is called like statistics is read as such",
    ),
    HandMade(
        file="ebpf/statistics/statistics.bpf.c",
        text="!file || start_ns / TICK_NS != vcpu->start_ticks ||",
        replacement="!file ||",
        test=f"{_MEMORY}only_the_named_file_of_the_named_process_is_read",
        breaks="the statistics of a later process with the same number are read",
    ),
)
