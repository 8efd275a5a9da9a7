# SPDX-License-Identifier: Apache-2.0
"""The rows of the table of hypervisors are complete and agree with the other tables."""

import pytest

from ebpf.counters import COUNTERS
from ebpf.hooks import HOOKS
from probes.host.hypervisors import BY_TYPE, HYPERVISORS, FdKind, Hypervisor, HypervisorType
from probes.host.procfs import classify_fds
from probes.judge.evidence import gather
from tests.support.facts import STARTED_NS, in_ioctl, kernel, process

each = pytest.mark.parametrize(
    "hypervisor", HYPERVISORS, ids=lambda hypervisor: hypervisor.type.value
)


def test_every_accelerated_type_has_a_row() -> None:
    """Every type has one row, except TCG and unknown."""
    assert len(BY_TYPE) == len(HYPERVISORS)
    without = {HypervisorType.TCG, HypervisorType.UNKNOWN}
    assert set(HypervisorType) == BY_TYPE.keys() | without
    assert not any(kind.accelerated for kind in without)


def test_no_two_are_mistaken_for_one_another() -> None:
    """No two hypervisors share a descriptor, thread name, counter, device or run call."""
    for signs in (
        [target for row in HYPERVISORS for target in row.descriptors],
        [row.thread_suffix for row in HYPERVISORS],
        [counter.name for row in HYPERVISORS for counter in row.run_counters],
        [row.driver.device for row in HYPERVISORS],
        [row.run_request for row in HYPERVISORS],
    ):
        assert len(set(signs)) == len(signs)


@each
def test_a_row_fits_the_other_tables(hypervisor: Hypervisor) -> None:
    """Hooks and counters belong to the hypervisor's driver and are in their tables."""
    assert hypervisor.entry_seen_by in hypervisor.watched_by
    for hook in HOOKS:
        if hook in hypervisor.watched_by:
            assert hook.driver == hypervisor.driver
            assert hook.optional is not hypervisor.expected
    for counter in (*hypervisor.run_counters, *hypervisor.proofs):
        assert counter in COUNTERS
        assert counter.hook.driver == hypervisor.driver
    assert hypervisor.descriptors[f"/dev/{hypervisor.driver.device}"] is FdKind.DEVICE


@each
def test_its_signs_are_recognized(hypervisor: Hypervisor) -> None:
    """A held vCPU, a thread inside the run call, and the thread's name point to one hypervisor."""
    (vcpu,) = [target for target, kind in hypervisor.descriptors.items() if kind is FdKind.VCPU]
    running = in_ioctl(9, hypervisor.run_request, comm=f"CPU 0/{hypervisor.thread_suffix}")
    unheld = in_ioctl(77, hypervisor.run_request, comm="worker", tid=4713)
    facts = process(fds=classify_fds([(9, vcpu)], complete=True), threads=(running, unheld))
    found = gather(facts, kernel(), start_monotonic_ns=STARTED_NS)
    assert found.claimed == {hypervisor.type}
    seen = found.of(hypervisor.type)
    assert (seen.held, seen.vcpus, seen.vcpus_in_run, seen.runs_unheld) == (True, 1, 1, 1)
    others = [found.of(row.type) for row in HYPERVISORS if row is not hypervisor]
    assert not any(other.held or other.vcpus_in_run or other.runs_unheld for other in others)
