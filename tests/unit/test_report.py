# SPDX-License-Identifier: Apache-2.0
"""NodeReport → JSON: every key that ``hvprobe snapshot`` promises."""

import json
from dataclasses import replace

from ebpf.hooks import HOOKS
from probes.judge.cause import Cause
from probes.judge.exit_counts import ExitSource
from probes.report.model import SCHEMA, CounterTrust, ProcessState, Source, to_json
from probes.vmi.model import WatchStatus
from tests.support.facts import health
from tests.support.rich_report import ALLOWED, rich_report


def section(name: str, *inner: str) -> object:
    found: object = json.loads(json.dumps(to_json(rich_report())))[name]
    for key in inner:
        assert isinstance(found, dict)
        found = found[key]
    return found


def test_report_survives_json() -> None:
    """A report consists of plain values, survives JSON unchanged, and names its schema."""
    plain = to_json(rich_report())
    assert json.loads(json.dumps(plain)) == plain
    assert plain["schema"] == SCHEMA == "hvprobe/v1"
    assert (plain["version"], plain["taken_unix_s"]) == ("0.1.0", 1700000100.5)


def test_node() -> None:
    """JSON has node, kernel, vendor module, nesting, and accelerators with the reason."""
    assert section("node") == {
        "name": "node-1",
        "kernel": "6.12.0-test",
        "machine": "x86_64",
        "module": "kvm_intel",
        "nested": False,
        "accelerators": [
            {"type": "kvm", "available": True, "reason": None},
            {"type": "mshv", "available": False, "reason": "/dev/mshv: not here"},
        ],
    }


def test_health() -> None:
    """JSON has hooks with backend and reason, trust in counters, ledger, and errors by source."""
    hooks = section("health", "hooks")
    assert isinstance(hooks, list)
    assert [hook["hook"] for hook in hooks] == [hook.name for hook in HOOKS]
    assert hooks[2] == {
        "hook": "kvm_vcpu_ioctl",
        "backend": "none",
        "reason": "kvm_vcpu_ioctl is not here",
        "attached_total": 0,
        "inactive": False,
        "missed_total": None,
    }
    assert hooks[3] == {
        "hook": "kvm_userspace_exit",
        "backend": "tracepoint",
        "reason": None,
        "attached_total": 1,
        "inactive": False,
        "missed_total": 4,
    }
    assert section("health", "counters") == {"exits": "blind", "userspace_exits": "proven"}
    assert section("health", "ledger") == {
        "entries": 3,
        "capacity": 4096,
        "dropped_total": 17,
        "error": None,
    }
    assert section("health", "bcc_version") == "0.26.0"
    assert section("health", "processes_pending") == 0
    assert section("health", "errors_total") == {
        "ebpf": 1,
        "proc": 0,
        "kvm_statistics": 2,
    }
    assert section("health", "vmi_watch") is None


def test_vmi_watch() -> None:
    """In a cluster, JSON has how current the VMIs are, and the reason if they are not."""
    watch = WatchStatus(
        up=False,
        synced=True,
        last_sync_unix_s=1700000000.5,
        restarts=3,
        error="API server lost",
        malformed_total=1,
    )
    told = to_json(replace(rich_report(), health=health(vmi_watch=watch)))["health"]
    assert isinstance(told, dict)
    assert told["vmi_watch"] == {
        "up": False,
        "synced": True,
        "last_sync_unix_s": 1700000000.5,
        "restarts_total": 3,
        "malformed_total": 1,
        "error": "API server lost",
    }


def test_vmis() -> None:
    """Unknown values of a VM are null, never 0."""
    vmis = section("vmis")
    assert isinstance(vmis, list)
    assert [vmi["name"] for vmi in vmis] == ["alpha", "beta", "delta", "epsilon", "gamma", "zeta"]
    assert vmis[0] == {
        "namespace": "default",
        "name": "alpha",
        "hypervisor_type": "kvm",
        "verified": True,
        "reasons": ["VM exits recorded", "KVM_RUN returns recorded"],
        "reason_codes": ["vm_exits_recorded", "userspace_exits_recorded"],
        "vcpu_statistics": None,
        "fallback": False,
        "tgid": 4711,
        "vcpu_userspace_exits_total": 2,
        "vcpu_exits_total": 41,
        "vcpu_exits_source": "kvm_statistics",
        "cause": None,
        "cause_detail": None,
        "remedy": None,
    }
    assert vmis[5] == {
        "namespace": "default",
        "name": "zeta",
        "hypervisor_type": "unknown",
        "verified": False,
        "reasons": ["no process found for this VM"],
        "reason_codes": ["no_process"],
        "vcpu_statistics": None,
        "fallback": False,
        "tgid": None,
        "vcpu_userspace_exits_total": None,
        "vcpu_exits_total": None,
        "vcpu_exits_source": None,
        "cause": None,
        "cause_detail": None,
        "remedy": None,
    }
    assert vmis[3]["fallback"] is None
    assert vmis[4]["vcpu_exits_source"] == "tracepoint"


def test_processes() -> None:
    """JSON has every VMM process, with or without the name of a VM."""
    processes = section("processes")
    assert isinstance(processes, list)
    assert processes[1] == {
        "tgid": 4711,
        "start_ticks": 6000,
        "started_unix_s": 1700000000.25,
        "comm": "qemu-system-x86",
        "guest_name": "default_alpha",
        "namespace": "default",
        "name": "alpha",
        "state": "attributed",
        "hypervisor_type": "kvm",
        "verified": True,
        "reasons": ["VM exits recorded", "KVM_RUN returns recorded"],
        "reason_codes": ["vm_exits_recorded", "userspace_exits_recorded"],
        "vcpu_statistics": None,
        "vcpus": 2,
        "kvm_runs_total": 3,
        "vcpu_userspace_exits_total": 2,
        "vcpu_exits_total": 41,
        "vcpu_exits_source": "kvm_statistics",
        "cause": None,
        "cause_detail": None,
        "remedy": None,
        "mshv_runs_total": None,
    }
    assert [process["state"] for process in processes] == [
        "probe",
        "attributed",
        "attributed",
        "unattributed",
    ]
    assert [process["vcpu_exits_source"] for process in processes] == [
        None,
        "kvm_statistics",
        None,
        "tracepoint",
    ]
    probe = processes[0]
    assert (probe["namespace"], probe["name"], probe["guest_name"]) == (None, None, None)
    assert (probe["vcpus"], probe["vcpu_exits_total"]) == (None, None)


def test_causes() -> None:
    """A process that emulates and its VM have the cause, in words as well, and its remedy."""
    vmis, processes = section("vmis"), section("processes")
    assert isinstance(vmis, list)
    assert isinstance(processes, list)
    keys = ("cause", "cause_detail", "remedy")
    found = {key: vmis[1][key] for key in keys}
    assert found == {
        "cause": "emulation_allowed",
        "cause_detail": f"{Cause.EMULATION_ALLOWED.phrase}: {ALLOWED.detail}",
        "remedy": Cause.EMULATION_ALLOWED.remedy,
    }
    assert {key: processes[2][key] for key in keys} == found
    assert (vmis[3]["cause"], vmis[3]["remedy"]) == ("unknown", Cause.UNKNOWN.remedy)


def test_hostile_names_stay_in_their_string() -> None:
    """No name of a process breaks the JSON or its line."""
    hostile = '"}],\n\u2028\ufffd\x1b[31m'
    report = rich_report()
    named = report.processes[0]._replace(comm=hostile, guest_name=hostile)
    text = json.dumps(to_json(replace(report, processes=(named,))))
    assert "\n" not in text
    assert "\x1b" not in text
    (found,) = json.loads(text)["processes"]
    assert (found["comm"], found["guest_name"]) == (hostile, hostile)


def test_words_are_the_contract() -> None:
    """Values of labels and JSON, which users write into queries, are fixed."""
    assert [state.value for state in ProcessState] == ["attributed", "unattributed", "probe"]
    assert [trust.value for trust in CounterTrust] == [
        "proven",
        "untried",
        "blind",
        "missing",
        "inactive",
    ]
    assert [source.value for source in Source] == ["ebpf", "proc", "kvm_statistics", "kube"]
    assert [source.value for source in ExitSource] == ["kvm_statistics", "tracepoint"]
