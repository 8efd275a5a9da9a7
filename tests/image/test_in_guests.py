"""The image on other kernels, with real kprobes, as a share of a guest of tests/guests."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from guest_build import build
from guest_kernels import kernel_named
from guest_results import results_of
from guest_vm import boot, unavailable
from image_build import Image
from required import require

pytestmark = pytest.mark.timeout(1500)
DEADLINE_S = 900.0
# bpf and perfmon by number: Debian 12's setpriv does not know their names.
BPF, PERFMON, PTRACE, READ, RESOURCE = (
    "cap_39 cap_38 sys_ptrace dac_read_search sys_resource".split()
)
ALL = (BPF, PERFMON, PTRACE, READ, RESOURCE)
MAINLINE, DEBIAN = 2, 3
"""kernel.perf_event_paranoid as kernel.org's sources and as Debian's set it."""
KPROBES = {"kvm_dev_ioctl", "kvm_vm_ioctl", "kvm_vcpu_ioctl"}
Json = dict[str, Any]


def case(paranoid: int, capabilities: Sequence[str]) -> str:
    return f"{paranoid}:{','.join(capabilities)}"


def seen_in(image: Image, name: str, cases: Sequence[str]) -> dict[str, Json]:
    """What the image's agent says in a guest with that kernel, by case."""
    kernel = kernel_named(name)
    require("image", unavailable(kernel.architecture))
    guest = dataclasses.replace(build(kernel), packages=image.root)
    command = f"exec python3 tests/image/guest_image_agent.py /results/seen.json {' '.join(cases)}"
    environment = {
        "PYTHONPATH": "/repo/tests/kernel:/repo/tests/image",
        "HVPROBE_TEST_DEADLINE_S": "120",
    }
    with results_of(f"image-{name}") as results:
        result = boot(guest, command, results, deadline_s=DEADLINE_S, environment=environment)
        assert result.exit_code == 0, result.console_tail()
        found: dict[str, Json] = json.loads((results / "seen.json").read_text())["seen"]
    return found


def backends(seen: Json) -> dict[str, str]:
    """Backend by hook, of /metrics."""
    found = re.findall(
        r'^hvprobe_hook_attached\{backend="(\w+)",hook="(\w+)"', seen["metrics"], re.MULTILINE
    )
    return {hook: backend for backend, hook in found}


def verified(seen: Json) -> bool:
    """Whether both guests are shown as what they are, proven."""
    expected = (
        'hypervisor_info{hypervisor_type="kvm",name="alpha",namespace="default",node="guest"} 1.0',
        'hypervisor_info{hypervisor_type="tcg",name="beta",namespace="lab",node="guest"} 1.0',
        'hypervisor_verified{name="alpha",namespace="default",node="guest"} 1.0',
        'hypervisor_verified{name="beta",namespace="lab",node="guest"} 1.0',
    )
    return all(f"kubevirt_vmi_{line}\n" in seen["metrics"] for line in expected)


def test_attaches_kprobes_with_capabilities_alone(image: Image) -> None:
    """Linux 6.12: the five capabilities attach everything.

    Where Debian's stricter perf_event_paranoid is left on, raw tracepoints still verify, and the
    reason names SYS_ADMIN.
    """
    open_, strict = case(MAINLINE, ALL), case(DEBIAN, ALL)
    seen = seen_in(image, "6.12", [open_, strict])
    assert verified(seen[open_])
    assert {hook for hook, it in backends(seen[open_]).items() if it == "kprobe"} == KPROBES
    assert "none" not in backends(seen[open_]).values()
    assert "kubevirt_vmi_vcpu_exits_total{" in seen[open_]["metrics"]
    assert verified(seen[strict])
    lost = {hook for hook, it in backends(seen[strict]).items() if it == "none"}
    assert lost == KPROBES | {"sched_process_free"}
    assert any("not permitted" in line and "CAP_SYS_ADMIN" in line for line in seen[strict]["log"])


def test_needs_sys_resource_before_5_11(image: Image) -> None:
    """Linux 5.10: with SYS_RESOURCE everything is attached, without it there is no BPF."""
    whole, without = (case(MAINLINE, names) for names in (ALL, ALL[:-1]))
    seen = seen_in(image, "5.10", [whole, without])
    assert verified(seen[whole])
    assert "none" not in backends(seen[whole]).values()
    assert any("WARNING no BPF" in line for line in seen[without]["log"])
