# SPDX-License-Identifier: Apache-2.0
"""The table of hypervisors: its rows are complete, and all that is known of one follows from it."""

import pytest

from ebpf.counters import COUNTERS
from ebpf.hooks import HOOKS
from probes.host.hypervisors import BY_TYPE, HYPERVISORS, FdKind, Hypervisor, HypervisorType
from probes.host.procfs import classify_fds
from probes.judge.evidence import gather
from tests.support.facts import STARTED_NS, in_ioctl, kernel, process

each = pytest.mark.parametrize("hypervisor", HYPERVISORS, ids=lambda it: it.type.value)


def test_every_accelerated_type_has_a_row() -> None:
    """One row a type; emulation and the unknown have none."""
    assert len(BY_TYPE) == len(HYPERVISORS)
    without = {HypervisorType.TCG, HypervisorType.UNKNOWN}
    assert set(HypervisorType) == BY_TYPE.keys() | without
    assert not any(kind.accelerated for kind in without)


def test_no_two_are_mistaken_for_one_another() -> None:
    """Descriptors, thread names, counters, devices and run calls differ."""
    for signs in (
        [target for it in HYPERVISORS for target in it.descriptors],
        [it.thread_suffix for it in HYPERVISORS],
        [counter.name for it in HYPERVISORS for counter in it.run_counters],
        [it.driver.device for it in HYPERVISORS],
        [it.run_request for it in HYPERVISORS],
    ):
        assert len(set(signs)) == len(signs)


@each
def test_a_row_fits_the_other_tables(hypervisor: Hypervisor) -> None:
    """Its hooks belong to its driver and are wanted where it is; its counters are in the table."""
    assert hypervisor.entry_seen_by in hypervisor.watched_by
    for hook in HOOKS:
        if hook.question in hypervisor.watched_by:
            assert hook.driver == hypervisor.driver
            assert hook.optional is not hypervisor.expected
    for counter in (*hypervisor.run_counters, *hypervisor.proofs):
        assert counter in COUNTERS
        assert counter.hook.driver == hypervisor.driver
    assert hypervisor.descriptors[f"/dev/{hypervisor.driver.device}"] is FdKind.DEVICE


@each
def test_its_signs_are_recognized(hypervisor: Hypervisor) -> None:
    """A vCPU held, a thread inside the run call, and its name are evidence of this one alone."""
    (vcpu,) = [it for it, kind in hypervisor.descriptors.items() if kind is FdKind.VCPU]
    running = in_ioctl(9, hypervisor.run_request, comm=f"CPU 0/{hypervisor.thread_suffix}")
    unheld = in_ioctl(77, hypervisor.run_request, comm="worker", tid=4713)
    facts = process(fds=classify_fds([(9, vcpu)], complete=True), threads=(running, unheld))
    found = gather(facts, kernel(), start_monotonic_ns=STARTED_NS)
    assert found.claimed == {hypervisor.type}
    seen = found.of(hypervisor.type)
    assert (seen.held, seen.vcpus, seen.vcpus_in_run, seen.runs_unheld) == (True, 1, 1, 1)
    others = [found.of(it.type) for it in HYPERVISORS if it is not hypervisor]
    assert not any(other.held or other.vcpus_in_run or other.runs_unheld for other in others)
