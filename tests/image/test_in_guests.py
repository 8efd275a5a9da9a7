# SPDX-License-Identifier: Apache-2.0
"""The image on other kernels, with real kprobes, as a share of a guest of vmtest."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.image_build import NATIVE, Image
from tests.support.required import require
from vmtest.build import build
from vmtest.kernels import GuestKernel, kernel_named, selected
from vmtest.results import results_of
from vmtest.vm import boot, unavailable

pytestmark = pytest.mark.timeout(1500)
DEADLINE_S = 900.0
MAX_BYTES = 600 * 10**6
# bpf and perfmon by number: Debian 12's setpriv does not know their names.
BPF, PERFMON, PTRACE, READ, RESOURCE = (
    "cap_39 cap_38 sys_ptrace dac_read_search sys_resource".split()
)
ALL = (BPF, PERFMON, PTRACE, READ, RESOURCE)
MAINLINE, DEBIAN = 2, 3
"""kernel.perf_event_paranoid as kernel.org's sources and as Debian's set it."""
KPROBES = {"kvm_dev_ioctl", "kvm_vm_ioctl", "kvm_vcpu_ioctl"}
NOT_NEEDED = {"kvm_exit"}
"""Detached once KVM's statistics, which QEMU 10 holds open, count the exits of every VM."""
Json = dict[str, Any]


def case(paranoid: int, capabilities: Sequence[str]) -> str:
    return f"{paranoid}:{','.join(capabilities)}"


def named(line: str) -> set[str]:
    """Capabilities that a line names."""
    return set(re.findall(r"CAP_\w+", line))


def chosen(name: str) -> GuestKernel:
    """The kernel of that name; skipped where HVPROBE_KERNELS does not name it."""
    kernel = kernel_named(name)
    if kernel not in selected():
        pytest.skip(f"HVPROBE_KERNELS does not name {name}")
    return kernel


def seen_in(image: Image, name: str, cases: Sequence[str]) -> dict[str, Json]:
    """What the image's agent says in a guest with that kernel, by case."""
    kernel = chosen(name)
    require("image", unavailable(kernel.architecture))
    guest = dataclasses.replace(build(kernel), packages=image.root)
    command = (
        f"exec python3 -m tests.support.guest_image_agent /results/seen.json {' '.join(cases)}"
    )
    environment = {
        "PYTHONPATH": "/repo",
        "HVPROBE_TEST_DEADLINE_S": "120",
    }
    with results_of(f"image-{name}") as results:
        result = boot(guest, command, results, deadline_s=DEADLINE_S, environment=environment)
        assert result.exit_code == 0, result.console_tail()
        found: dict[str, Json] = json.loads((results / "seen.json").read_text())["seen"]
    return found


def backends(seen: Json) -> dict[str, str]:
    """The backend of each hook in /metrics."""
    found = re.findall(
        r'^hvprobe_hook_attached\{backend="(\w+)",hook="(\w+)"', seen["metrics"], re.MULTILINE
    )
    return {hook: backend for backend, hook in found}


def attached_as(seen: Json, backend: str) -> set[str]:
    """The hooks that are attached with this backend."""
    return {hook for hook, found in backends(seen).items() if found == backend}


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

    Where Debian's stricter perf_event_paranoid is left on, the kprobes are attached by links, raw
    tracepoints still verify, and the reason names SYS_ADMIN.
    """
    open_, strict = case(MAINLINE, ALL), case(DEBIAN, ALL)
    seen = seen_in(image, "6.12", [open_, strict])
    assert verified(seen[open_])
    assert attached_as(seen[open_], "kprobe") == KPROBES
    assert attached_as(seen[open_], "none") <= NOT_NEEDED
    assert "kubevirt_vmi_vcpu_exits_total{" in seen[open_]["metrics"]
    assert verified(seen[strict])
    assert attached_as(seen[strict], "kprobe") == KPROBES
    (activity,) = [line for line in seen[strict]["doctor"].splitlines() if "KVM activity" in line]
    assert "kvm_vcpu_ioctl (kprobe_multi)" in activity
    assert "kernel.perf_event_paranoid=3" in activity
    lost = attached_as(seen[strict], "none") - NOT_NEEDED
    assert lost == {"sched_process_fork", "sched_process_free"}
    refusals = [line for line in seen[strict]["log"] if "not permitted" in line]
    assert len(refusals) == len(lost)
    assert all(named(line) == {"CAP_SYS_ADMIN"} for line in refusals)
    assert all("kernel.perf_event_paranoid=3" in line for line in refusals)


def test_needs_sys_resource_before_5_11(image: Image) -> None:
    """Linux 5.10: with SYS_RESOURCE everything is attached, without it there is no BPF.

    The reason then names it alone.
    """
    whole, without = (case(MAINLINE, names) for names in (ALL, ALL[:-1]))
    seen = seen_in(image, "5.10", [whole, without])
    assert verified(seen[whole])
    assert "none" not in backends(seen[whole]).values()
    (warning,) = [line for line in seen[without]["log"] if "WARNING no BPF" in line]
    assert named(warning) == {"CAP_SYS_RESOURCE"}
    assert seen[without]["exit"] == 1
    assert any(
        "CAP_SYS_RESOURCE is missing" in line for line in seen[without]["doctor"].split("\n")
    )
    assert "permissions: complete" in seen[whole]["doctor"]
    assert "permissions: incomplete" in seen[without]["doctor"]


def test_runs_on_arm64(request: pytest.FixtureRequest) -> None:
    """The image for arm64, on a real arm64 kernel (6.1): small, and kprobes with capabilities."""
    chosen("6.1-arm64")
    if "arm64" not in os.environ.get("HVPROBE_IMAGES", NATIVE).split(","):
        pytest.skip("HVPROBE_IMAGES does not name arm64")
    # Asked for here: building it takes minutes, which both choices are to save.
    arm64_image: Image = request.getfixturevalue("arm64_image")
    assert arm64_image.architecture == "arm64"
    assert arm64_image.size_bytes < MAX_BYTES
    whole = case(MAINLINE, ALL)
    seen = seen_in(arm64_image, "6.1-arm64", [whole])
    assert verified(seen[whole])
    assert attached_as(seen[whole], "kprobe") == KPROBES
    assert "none" not in backends(seen[whole]).values()
