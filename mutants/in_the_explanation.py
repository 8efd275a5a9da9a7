# SPDX-License-Identifier: Apache-2.0
"""Mutants made by hand in what explains one VM: its evidence, its processes, its address."""

from mutants.hand_made import HandMade

_WHY = "tests/unit/test_why.py::test_"
_PAGES = "tests/unit/test_refresh.py::test_"

IN_THE_EXPLANATION = (
    HandMade(
        file="probes/report/why_evidence.py",
        text="return Side.AGAINST if seen.contradicts else Side.LIMIT",
        replacement="return Side.FOR",
        test=f"{_WHY}evidence_against",
        breaks="what speaks against a verdict is shown as speaking for it",
    ),
    HandMade(
        file="probes/report/why_seen.py",
        text="silent = evidence.ledger is None and not is_counted",
        replacement="silent = evidence.ledger is None",
        test=f"{_WHY}evidence_against",
        breaks="the hooks are said to have recorded nothing although they have counted since",
    ),
    HandMade(
        file="probes/report/why.py",
        text="            belongs = _pod_uid(process) in vmi.pods",
        replacement="            belongs = vm_name(process.guest_name) == vmi.vm",
        test=f"{_WHY}two_processes_of_a_pod",
        breaks="in a cluster a process belongs to the VM that it names itself after",
    ),
    HandMade(
        file="probes/serve/endpoints.py",
        text='namespace, name = (unquote(part, errors="strict") for part in parts[2:])',
        replacement="namespace, name = (unquote(unquote(part)) for part in parts[2:])",
        test=f"{_PAGES}a_vm_that_is_not_there",
        breaks="a name in an address is decoded twice",
    ),
    HandMade(
        file="probes/command/why_show.py",
        text="    return EXIT_EMULATED if kind is HypervisorType.TCG else EXIT_UNKNOWN",
        replacement="    return EXIT_EMULATED",
        test="tests/unit/test_cli.py::test_exit_codes_of_why",
        breaks="a VM of unknown type exits like an emulated one",
    ),
)
