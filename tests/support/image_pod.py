# SPDX-License-Identifier: Apache-2.0
"""A pod of a rendered DaemonSet as an OCI runtime would get it: pure, from manifest to config.json.

Owns what a container runtime makes of a container's securityContext, mounts and resources (CRI:
containerd pkg/cri, CRI-O server/container_create_linux.go), and kubelet of its service account.
Must not know how it is run. Other than in a cluster there is the machine's network unless asked
otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.vmi.kube.credentials import InCluster

MASKED = ("acpi asound kcore keys latency_stats timer_list timer_stats sched_debug scsi").split()
READ_ONLY = "bus fs irq sys sysrq-trigger".split()
DEVICE_RULES_DEFAULT = (
    # null, zero, full, random, urandom, tty, console, ptmx and pseudo terminals.
    *((1, minor) for minor in (3, 5, 7, 8, 9)),
    *((5, minor) for minor in (0, 1, 2)),
    (136, None),
)
SERVICE_ACCOUNT = "serviceaccount"
"""The directory in World.scratch that holds the service account's files."""
SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where kubelet puts them (plugin/pkg/admission/serviceaccount, DefaultAPITokenMountPath)."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the runtime knows and the manifest does not."""

    root: Path
    """The image's root file system."""
    image: Json
    """The image's own configuration (Entrypoint, Env)."""
    scratch: Path
    """For emptyDir volumes, secrets and the service account's files."""
    capabilities: frozenset[str]
    """Those that this machine can give at all."""
    seccomp: Json
    """The runtime's default profile, as containers/common ships it."""
    environment: Mapping[str, str]
    """Added to the container's: the test's own wishes."""
    devices: Sequence[Json] = ()
    """The host's devices, which only privileged containers get."""
    own_network: bool = False
    """A network namespace with a loopback interface alone, not the machine's network."""
    node: str = "worker-1"
    """The node's name."""
    service_account: InCluster | None = None
    """The pod's, as the test has it; None: there is no cluster."""


def runtime_config(daemonset: Json, world: World) -> Json:
    """config.json of the DaemonSet's only container."""
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    privileged = bool(context.get("privileged"))
    kept = granted(context, world.capabilities)
    kinds = namespaces(pod, privileged=privileged)
    if world.own_network:
        kinds.append("network")
    linux: Json = {
        "namespaces": [{"type": kind} for kind in kinds],
        "resources": resources(container, privileged=privileged),
    }
    if privileged:
        linux["devices"] = list(world.devices)
    else:
        linux["maskedPaths"] = [*(f"/proc/{name}" for name in MASKED), "/sys/firmware"]
        linux["readonlyPaths"] = [f"/proc/{name}" for name in READ_ONLY]
    if context.get("seccompProfile", {}).get("type") == "RuntimeDefault":
        linux["seccomp"] = seccomp_for(kept, world.seccomp)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": context["runAsUser"], "gid": 0},
            "cwd": "/",
            "args": [*world.image["Entrypoint"], *container["args"]],
            "env": environment(container, world),
            "noNewPrivileges": context.get("allowPrivilegeEscalation") is False,
            "capabilities": {kind: sorted(kept) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": str(world.root), "readonly": context["readOnlyRootFilesystem"]},
        "hostname": "hvprobe-test",
        "mounts": [
            *system_mounts(privileged=privileged),
            *volume_mounts(pod, world),
            *service_account_mounts(pod, world),
        ],
        "linux": linux,
    }


def granted(context: Json, possible: frozenset[str]) -> frozenset[str]:
    """Capabilities the container gets, by their kernel names. Only `drop: [ALL]` is understood."""
    if context.get("privileged"):
        return possible
    assert context["capabilities"]["drop"] == ["ALL"]
    return frozenset(f"CAP_{name}" for name in context["capabilities"]["add"]) & possible


def namespaces(pod: Json, *, privileged: bool) -> list[str]:
    """hostPID leaves out pid; privileged containers stay in the host's cgroup namespace."""
    wanted = ["mount", "ipc", "uts"]
    if not pod.get("hostPID"):
        wanted.append("pid")
    if not privileged:
        wanted.append("cgroup")
    return wanted


def resources(container: Json, *, privileged: bool) -> Json:
    """Devices and memory that the container's cgroup is held to."""
    rules: list[Json] = [{"allow": privileged, "access": "rwm"}]
    if not privileged:
        for major, minor in DEVICE_RULES_DEFAULT:
            rule: Json = {"allow": True, "type": "c", "major": major, "access": "rwm"}
            rules.append(rule if minor is None else {**rule, "minor": minor})
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    return {"devices": rules, "memory": {"limit": int(limit.removesuffix("Mi")) << 20}}


def environment(container: Json, world: World) -> list[str]:
    """The image's, then the API server's address, then the manifest's, then the test's."""
    found = dict(pair.split("=", 1) for pair in world.image["Env"])
    if world.service_account:
        found.update(world.service_account.environ)
    for entry in container["env"]:
        source = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        assert source in (None, "spec.nodeName")
        found[entry["name"]] = world.node if source else entry["value"]
    return [f"{name}={value}" for name, value in {**found, **world.environment}.items()]


def system_mounts(*, privileged: bool) -> list[Json]:
    """What every container gets."""
    tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    access = "rw" if privileged else "ro"
    safe = ["nosuid", "noexec", "nodev"]
    return [
        mount("/proc", "proc", safe),
        mount("/dev", "tmpfs", tmpfs),
        mount("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666"]),
        mount("/dev/shm", "tmpfs", [*safe, "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", [*safe, access]),
        mount("/sys/fs/cgroup", "cgroup", [*safe, "ro"]),
    ]


def mount(destination: str, kind: str, options: list[str]) -> Json:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def volume_mounts(pod: Json, world: World) -> list[Json]:
    """The pod's volumes where its container wants them."""
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return [
        volume_mount(volumes[wanted["name"]], wanted, world) for wanted in container["volumeMounts"]
    ]


def volume_mount(volume: Json, wanted: Json, world: World) -> Json:
    access = "ro" if wanted.get("readOnly") else "rw"
    if "hostPath" in volume:
        source = volume["hostPath"]["path"]
    elif "secret" in volume:
        source = str(world.scratch / volume["secret"]["secretName"])
    else:
        assert volume["emptyDir"]["medium"] == "Memory"
        size = volume["emptyDir"]["sizeLimit"].removesuffix("i").lower()
        return mount(wanted["mountPath"], "tmpfs", ["rw", "mode=1777", f"size={size}"])
    return bind(wanted["mountPath"], source, access)


def service_account_mounts(pod: Json, world: World) -> list[Json]:
    """Token, ca.crt and namespace, where the manifest lets kubelet mount them."""
    if world.service_account is None or not pod["automountServiceAccountToken"]:
        return []
    return [bind(SERVICE_ACCOUNT_MOUNT, str(world.scratch / SERVICE_ACCOUNT), "ro")]


def bind(destination: str, source: str, access: str) -> Json:
    options = ["rbind", "rprivate", access]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def seccomp_for(capabilities: frozenset[str], profile: Json) -> Json:
    """The profile with its conditions decided (containers/common pkg/seccomp, BuildFilter)."""
    chosen = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if not machine_matches(includes, True) or machine_matches(excludes, False):
            continue
        if not frozenset(includes.get("caps") or ()) <= capabilities:
            continue
        if frozenset(excludes.get("caps") or ()) & capabilities:
            continue
        entry = {"names": rule["names"], "action": rule["action"]}
        if rule.get("args"):
            entry["args"] = rule["args"]
        if rule.get("errnoRet") is not None:
            entry["errnoRet"] = rule["errnoRet"]
        chosen.append(entry)
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": chosen,
    }


def machine_matches(condition: Json, otherwise: bool) -> bool:
    """Whether a rule's condition names this architecture; otherwise where it names none."""
    return "amd64" in condition["arches"] if condition.get("arches") else otherwise
