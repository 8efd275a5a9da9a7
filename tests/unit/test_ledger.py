# SPDX-License-Identifier: Apache-2.0
"""The kernel's records and their mirrors in Python are the same, byte for byte."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from ebpf.counters import COUNTERS
from ebpf.hooks import HOOKS
from ebpf.ledger import (
    PLACES,
    RELEASED,
    ActivityRecord,
    CpuActivityRecord,
    LedgerEntry,
    LivesRecord,
    PlaceRecord,
    ProcessRecord,
    Total,
    entries_from,
    owner_of,
    per_cpu_counts,
    tgid_of,
)
from probes.host.hypervisors import HypervisorType, recorded_type
from tests.support.facts import entry, hooks, kernel
from tests.support.required import require

RECORDS: dict[str, type[ctypes.Structure]] = {
    "ledger_process": ProcessRecord,
    "ledger_activity": ActivityRecord,
    "ledger_cpu_activity": CpuActivityRecord,
    "ledger_place": PlaceRecord,
    "ledger_lives": LivesRecord,
}


def _program() -> str:
    """Return C that prints the size of each record, offset and size of its fields, and numbers."""
    lines = []
    for struct, mirror in RECORDS.items():
        lines.append(f'printf("{struct} size %zu\\n", sizeof(struct {struct}));')
        for field, *_ in mirror._fields_:
            member = f"((struct {struct} *)0)->{field}"
            lines.append(
                f'printf("{struct} {field} %zu %zu\\n", '
                f"offsetof(struct {struct}, {field}), sizeof({member}));"
            )
    lines += [f'printf("LEDGER_{total.name} %d\\n", LEDGER_{total.name});' for total in Total]
    lines.append('printf("LEDGER_TOTALS %d\\n", LEDGER_TOTALS);')
    lines.append('printf("LEDGER_RELEASED %llu\\n", LEDGER_RELEASED);')
    body = "\n\t".join(lines)
    return (
        '#include "ledger.h"\n#include <stddef.h>\n#include <stdio.h>\n\n'
        f"int main(void)\n{{\n\t{body}\n\treturn 0;\n}}\n"
    )


def _mirrored() -> Iterator[str]:
    for struct, mirror in RECORDS.items():
        yield f"{struct} size {ctypes.sizeof(mirror)}"
        for field, *_ in mirror._fields_:
            place = getattr(mirror, field)
            yield f"{struct} {field} {place.offset} {place.size}"
    yield from (f"LEDGER_{total.name} {total.value}" for total in Total)
    yield f"LEDGER_TOTALS {len(Total)}"
    yield f"LEDGER_RELEASED {RELEASED}"


@pytest.fixture
def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    require("kernel", None if found else "there is no C compiler: install gcc")
    assert found is not None
    return found


def test_mirror_of_the_header_is_exact(compiler: str, tmp_path: Path) -> None:
    """Every size, offset and number of ledger.h is the one that ledger.py uses.

    The header compiles in plain user space without a warning.
    """
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(_program())
    with resources.as_file(resources.files("ebpf")) as headers:
        warnings = ("-Wall", "-Wextra", "-Wpadded", "-Werror")
        command = [compiler, *warnings, "-I", str(headers), "-o", str(program), str(source)]
        subprocess.run(command, check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == list(_mirrored())


def test_every_field_of_the_header_is_mirrored() -> None:
    """The mirror has every field of the header, which this test checks without a compiler."""
    header = resources.files("ebpf").joinpath("ledger.h").read_text()
    for struct, mirror in RECORDS.items():
        body = header.partition(f"struct {struct} {{")[2].partition("};")[0]
        members = [
            line.partition(";")[0].split()[-1].partition("[")[0]
            for line in body.splitlines()
            if line.strip()
        ]
        assert members == [name for name, *_ in mirror._fields_]


def _words(*records: ProcessRecord) -> list[int]:
    return [getattr(record, name) for record in records for name, *_ in ProcessRecord._fields_]


def test_records_get_the_counters_of_their_slots() -> None:
    """Each record has its own slot's counters, and a time of 0 means that the event is absent."""
    records = _words(
        ProcessRecord(first_ns=7, tgid=6, leader_exit_ns=9),
        ProcessRecord(),
        ProcessRecord(first_ns=7, tgid=5, vms_created=1, vcpus_created=2),
    )
    counters = [1, 2, 3, 5, *[0] * 4, 3, 30, 29, 0]
    found, complete = entries_from(records, counters, {0: (4,), 2: (2**63 + 100,)}, records)
    assert complete
    assert found == {
        5: entry(
            5,
            first_ns=7,
            vms_created=1,
            vcpus_created=2,
            runs=3,
            userspace_exits=30,
            completed_runs=29,
            exits=2**63 + 100,
        ),
        6: entry(
            6,
            first_ns=7,
            leader_exit_ns=9,
            runs=1,
            userspace_exits=2,
            completed_runs=3,
            exits=4,
            mshv_runs=5,
        ),
    }


def test_a_slot_that_no_cpu_counted_in_has_zeros() -> None:
    """A record without per-CPU counts has 0 of each, beside the counts that all CPUs share."""
    records = _words(ProcessRecord(first_ns=7, tgid=5))
    found, _ = entries_from(records, [1, 2, 3, 4], {}, records)
    assert (
        found[5].counters
        == entry(runs=1, userspace_exits=2, completed_runs=3, mshv_runs=4).counters
    )


def test_a_counter_is_in_the_record_of_its_kind() -> None:
    """A row of the table says which record has the counter; together they have all counters."""
    for record, per_cpu in ((ActivityRecord, False), (CpuActivityRecord, True)):
        fields = [name for name, *_ in record._fields_]
        assert fields == [counter.name for counter in COUNTERS if counter.per_cpu == per_cpu]
    assert set(PLACES) == {counter.name for counter in COUNTERS}
    assert sorted(PLACES.values()) == list(range(len(COUNTERS)))


def test_records_say_where_cpus_have_counted() -> None:
    """Only marked records are collected from all CPUs: from places, from their slots, or both."""
    records = _words(
        ProcessRecord(first_ns=7, tgid=6, in_places=1),
        ProcessRecord(first_ns=7, tgid=9),
        ProcessRecord(first_ns=7, tgid=5, in_slot=1),
        ProcessRecord(first_ns=7, tgid=2**32 - 1, in_places=1, in_slot=1),
    )
    found = per_cpu_counts(records)
    assert found.in_places == {owner_of(6, 0): 0, owner_of(2**32 - 1, 3): 3}
    assert found.in_slot == [2, 3]
    assert [tgid_of(owner) for owner in found.in_places] == [6, 2**32 - 1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ProcessRecord(first_ns=7, tgid=5), ProcessRecord(first_ns=8, tgid=5)),
        (ProcessRecord(first_ns=7, tgid=5), ProcessRecord(first_ns=9, tgid=6)),
        (ProcessRecord(), ProcessRecord(first_ns=9, tgid=6)),
    ],
)
def test_a_slot_that_changed_hands_meanwhile_is_left_out(
    before: ProcessRecord, after: ProcessRecord
) -> None:
    """A slot whose owner changed during the read is absent, and the result is incomplete."""
    assert entries_from(_words(before), [1, 2, 3, 4], {0: (5,)}, _words(after)) == ({}, False)


def test_a_process_that_went_meanwhile_is_not_there() -> None:
    """A process that ended during the read is absent, and the result is complete."""
    before, after = ProcessRecord(first_ns=7, tgid=5), ProcessRecord(first_ns=0, tgid=5)
    assert entries_from(_words(before), [1, 2, 3, 4], {0: (5,)}, _words(after)) == ({}, True)


def test_what_a_record_says_is_the_newer() -> None:
    """An end of the main thread during the read is in the result."""
    before = ProcessRecord(first_ns=7, tgid=5)
    after = ProcessRecord(first_ns=7, tgid=5, leader_exit_ns=9)
    found, _ = entries_from(_words(before), [0] * 4, {}, _words(after))
    assert found[5].leader_exit_ns == 9


@pytest.mark.parametrize("counter", ["runs", "userspace_exits", "exits"])
def test_any_use_of_a_vcpu_counts_as_running(counter: str) -> None:
    """One event of any of the three hooks shows that the process ran a vCPU."""
    assert recorded_type(entry(**{counter: 1})) is HypervisorType.KVM


def test_making_a_vm_is_not_running_it() -> None:
    """KVM_CREATE_VM and KVM_CREATE_VCPU alone do not show that a vCPU ran."""
    assert recorded_type(entry(vms_created=1, vcpus_created=64)) is None


def test_snapshot_has_no_error_unless_told() -> None:
    """By default a snapshot has no error and all hooks, attached and in the table's order."""
    read = kernel(entry())
    assert read.error is None
    assert [status.hook for status in read.hooks] == list(HOOKS)
    assert all(status.attached for status in hooks())


def test_nothing_is_counted_unless_told() -> None:
    """A new entry has no counts and shows no use of a hypervisor."""
    new = LedgerEntry(1, 2, None)
    assert (new.vms_created, new.vcpus_created) == (0, 0)
    assert not any(new.count(counter) for counter in COUNTERS)
    assert recorded_type(new) is None
