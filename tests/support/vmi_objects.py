# SPDX-License-Identifier: Apache-2.0
"""VirtualMachineInstances in the form KubeVirt v1 makes them, most of which hvprobe must ignore."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

# Any: these are JSON documents that tests reach into.
Vmi = dict[str, Any]

_SPACE = uuid.UUID("6f0d3a52-1c8e-4b27-9a44-d1f5b0c7e823")


def encoded(obj: object) -> bytes:
    """The object as the API server sends it."""
    return json.dumps(obj).encode()


def pod_uid(namespace: str, name: str, generation: int = 1) -> str:
    """The launcher pod's uid that the builders give a VMI's n-th pod."""
    return str(uuid.uuid5(_SPACE, f"pod/{namespace}/{name}/{generation}"))


def vmi(
    name: str,
    *,
    namespace: str = "default",
    node: str | None = "node-a",
    phase: str = "Running",
    generation: int = 1,
    architecture: str | None = "amd64",
) -> Vmi:
    """One VMI; `generation` counts the restarts of its VM, each with a new uid and pod."""
    labels = {"kubevirt.io/domain": name, "vm.kubevirt.io/name": name}
    if node is not None:
        labels["kubevirt.io/nodeName"] = node
    status: dict[str, Any] = _status(phase)
    if node is not None:
        status["nodeName"] = node
        status["activePods"] = {pod_uid(namespace, name, generation): node}
    obj: Vmi = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "annotations": {
                "kubevirt.io/latest-observed-api-version": "v1",
                "kubevirt.io/storage-observed-api-version": "v1",
                "kubevirt.io/vm-generation": str(generation),
            },
            "creationTimestamp": "2025-03-02T09:14:07Z",
            "finalizers": [
                "kubevirt.io/virtualMachineControllerFinalize",
                "foregroundDeleteVirtualMachine",
            ],
            "generation": 11,
            "labels": labels,
            "managedFields": _managed_fields(),
            "name": name,
            "namespace": namespace,
            "ownerReferences": [
                {
                    "apiVersion": "kubevirt.io/v1",
                    "blockOwnerDeletion": True,
                    "controller": True,
                    "kind": "VirtualMachine",
                    "name": name,
                    "uid": str(uuid.uuid5(_SPACE, f"vm/{namespace}/{name}")),
                }
            ],
            "uid": str(uuid.uuid5(_SPACE, f"vmi/{namespace}/{name}/{generation}")),
        },
        "spec": _spec(name),
        "status": status,
    }
    if architecture is not None:
        obj["spec"]["architecture"] = architecture
    return obj


def migrating(obj: Vmi, target_node: str, *, mode: str = "PreCopy") -> Vmi:
    """Copy a VMI that moves to another node; its nodeName is still the source's."""
    moving = copy.deepcopy(obj)
    metadata, status = moving["metadata"], moving["status"]
    metadata["labels"]["kubevirt.io/migrationTargetNodeName"] = target_node
    status["activePods"][pod_uid(metadata["namespace"], metadata["name"], 1000)] = target_node
    status["migrationState"] = {
        "migrationConfiguration": {"allowPostCopy": True, "parallelMigrationsPerCluster": 5},
        "migrationUid": str(uuid.uuid5(_SPACE, f"migration/{metadata['name']}")),
        "mode": mode,
        "sourceNode": status["nodeName"],
        "sourcePod": f"virt-launcher-{metadata['name']}-aaaaa",
        "startTimestamp": "2025-03-02T10:00:01Z",
        "targetDirectMigrationNodePorts": {"38149": 0, "40077": 49152},
        "targetNode": target_node,
        "targetNodeAddress": "10.244.1.17",
        "targetNodeDomainDetected": True,
        "targetPod": f"virt-launcher-{metadata['name']}-bbbbb",
    }
    return moving


def migrated(moving: Vmi) -> Vmi:
    """Copy a VMI whose target has taken over: label and nodeName moved, the source pod is gone."""
    done = copy.deepcopy(moving)
    status = done["status"]
    state = status["migrationState"]
    target = state["targetNode"]
    state.update(
        completed=True,
        endTimestamp="2025-03-02T10:00:09Z",
        targetNodeDomainReadyTimestamp="2025-03-02T10:00:08Z",
    )
    status["nodeName"] = target
    status["activePods"] = {u: n for u, n in status["activePods"].items() if n == target}
    done["metadata"]["labels"]["kubevirt.io/nodeName"] = target
    del done["metadata"]["labels"]["kubevirt.io/migrationTargetNodeName"]
    return done


def migration_failed(moving: Vmi) -> Vmi:
    """Copy a VMI whose migration failed: it stays at the source, the target pod is gone."""
    failed = copy.deepcopy(moving)
    status = failed["status"]
    status["migrationState"].update(
        completed=True,
        failed=True,
        failureReason="Live migration failed: operation aborted",
        endTimestamp="2025-03-02T10:00:20Z",
    )
    source = status["nodeName"]
    status["activePods"] = {u: n for u, n in status["activePods"].items() if n == source}
    del failed["metadata"]["labels"]["kubevirt.io/migrationTargetNodeName"]
    return failed


def deleting(obj: Vmi) -> Vmi:
    """Copy a VMI whose deletion was asked for and waits for the finalizers."""
    going = copy.deepcopy(obj)
    going["metadata"]["deletionTimestamp"] = "2025-03-02T11:30:00Z"
    going["metadata"]["deletionGracePeriodSeconds"] = 0
    return going


def _spec(name: str) -> dict[str, Any]:
    return {
        "domain": {
            "cpu": {"cores": 1, "maxSockets": 4, "model": "host-model", "sockets": 1, "threads": 1},
            "devices": {
                "disks": [
                    {"disk": {"bus": "virtio"}, "name": "rootdisk"},
                    {"disk": {"bus": "virtio"}, "name": "cloudinit"},
                ],
                "interfaces": [{"masquerade": {}, "model": "virtio", "name": "default"}],
                "rng": {},
            },
            "features": {"acpi": {"enabled": True}, "smm": {"enabled": True}},
            "firmware": {
                "serial": str(uuid.uuid5(_SPACE, f"serial/{name}")),
                "uuid": str(uuid.uuid5(_SPACE, f"firmware/{name}")),
            },
            "machine": {"type": "pc-q35-rhel9.4.0"},
            "memory": {"guest": "2Gi", "maxGuest": "8Gi"},
            "resources": {"requests": {"memory": "2Gi"}},
        },
        "evictionStrategy": "LiveMigrate",
        "networks": [{"name": "default", "pod": {}}],
        "subdomain": "headless",
        "terminationGracePeriodSeconds": 180,
        "volumes": [
            {"dataVolume": {"name": f"{name}-rootdisk"}, "name": "rootdisk"},
            {"cloudInitNoCloud": {"userData": "#cloud-config\nuser: me\n"}, "name": "cloudinit"},
        ],
    }


def _status(phase: str) -> dict[str, Any]:
    passed = ["Pending", "Scheduling", "Scheduled", "Running"]
    return {
        "conditions": [
            {
                "lastProbeTime": None,
                "lastTransitionTime": "2025-03-02T09:14:31Z",
                "status": "True",
                "type": "Ready",
            },
            {
                "lastProbeTime": None,
                "lastTransitionTime": None,
                "message": "All of the VMI's DVs are bound and ready",
                "reason": "AllDVsReady",
                "status": "True",
                "type": "DataVolumesReady",
            },
            {
                "lastProbeTime": None,
                "lastTransitionTime": None,
                "status": "True",
                "type": "LiveMigratable",
            },
            {
                "lastProbeTime": "2025-03-02T09:15:02Z",
                "lastTransitionTime": None,
                "status": "True",
                "type": "AgentConnected",
            },
        ],
        "currentCPUTopology": {"cores": 1, "sockets": 1, "threads": 1},
        "guestOSInfo": {
            "id": "fedora",
            "kernelRelease": "6.11.4-301.fc41.x86_64",
            "kernelVersion": "#1 SMP PREEMPT_DYNAMIC",
            "machine": "x86_64",
            "name": "Fedora Linux",
            "prettyName": "Fedora Linux 41 (Cloud Edition)",
            "version": "41 (Cloud Edition)",
            "versionId": "41",
        },
        "interfaces": [
            {
                "infoSource": "domain, guest-agent",
                "interfaceName": "eth0",
                "ipAddress": "10.244.0.31",
                "ipAddresses": ["10.244.0.31", "fd10:244::1f"],
                "linkState": "up",
                "mac": "02:00:00:5b:16:0a",
                "name": "default",
                "podInterfaceName": "eth0",
                "queueCount": 1,
            }
        ],
        "launcherContainerImageVersion": "quay.example/kubevirt/virt-launcher:v1.4.0",
        "machine": {"type": "pc-q35-rhel9.4.0"},
        "memory": {"guestAtBoot": "2Gi", "guestCurrent": "2Gi", "guestRequested": "2Gi"},
        "migrationMethod": "LiveMigration",
        "migrationTransport": "Unix",
        "phase": phase,
        "phaseTransitionTimestamps": [
            {"phase": each, "phaseTransitionTimestamp": "2025-03-02T09:14:07Z"} for each in passed
        ],
        "qosClass": "Burstable",
        "runtimeUser": 107,
        "selinuxContext": "system_u:object_r:container_file_t:s0:c281,c745",
        "virtualMachineRevisionName": "revision-start-vm-3",
        "volumeStatus": [
            {"name": "cloudinit", "size": 1048576, "target": "vdb"},
            {
                "name": "rootdisk",
                "persistentVolumeClaimInfo": {
                    "accessModes": ["ReadWriteMany"],
                    "capacity": {"storage": "30Gi"},
                    "claimName": "rootdisk",
                    "filesystemOverhead": "0",
                    "requests": {"storage": "30Gi"},
                    "volumeMode": "Block",
                },
                "target": "vda",
            },
        ],
    }


def _managed_fields() -> list[dict[str, Any]]:
    """Who set which field: the larger half of a real object."""
    fields = [
        "activePods", "conditions", "currentCPUTopology", "guestOSInfo", "interfaces",
        "launcherContainerImageVersion", "machine", "memory", "migrationMethod",
        "migrationTransport", "nodeName", "phase", "phaseTransitionTimestamps", "qosClass",
        "runtimeUser", "selinuxContext", "virtualMachineRevisionName", "volumeStatus",
    ]  # fmt: skip
    return [
        {
            "apiVersion": "kubevirt.io/v1",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:kubevirt.io/nodeName": {}}},
                "f:status": {f"f:{each}": {".": {}, "f:value": {}} for each in fields},
            },
            "manager": manager,
            "operation": "Update",
            "time": "2025-03-02T09:15:02Z",
        }
        for manager in ("virt-controller", "virt-handler", "virt-api")
    ]
