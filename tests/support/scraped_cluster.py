# SPDX-License-Identifier: Apache-2.0
"""A small cluster as Prometheus sees it over HTTP: agents, KubeVirt's components, others.

Owns the label sets. hvprobe's are those of probes/render/metrics.py, KubeVirt's those of its own
collectors: kubevirt_vmi_info of pkg/monitoring/metrics/virt-controller/vmistats_collector.go, the
per-VMI series of pkg/monitoring/metrics/virt-handler/domainstats (node, namespace, name, and the
VMI's labels as kubernetes_vmi_label_…), kubevirt_configuration_emulation_enabled of virt-operator.
Labels with an empty value are left out, as KubeVirt's library does. kubevirt-metrics-exporter's are
those of its pkg/kvm/collector.go, its target labels those of its deploy/podmonitor.

In this cluster n1 has no fault, n2 has no kprobes, n3 runs a VMI and has no agent, and n4 has no
accelerator.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ebpf import hooks
from tests.support.podmonitor import Pod, listed, scrape_job

HOOKS = {hook.name: hook.points[0].backend for hook in hooks.HOOKS if not hook.optional}
"""The hooks of a node that can attach all of them, each with its preferred backend."""
AGENT_NODES = ("n1", "n2", "n4")
EXITS_BY_CLASS = {"halt": 100, "io": 300, "mmio": 40, "irq": 90, "hypercall": 7}
"""Per second and accelerated VMI."""
PORTS = {
    "kubevirt-prometheus-metrics": 8443,
    "kube-state-metrics": 8080,
    "kubevirt-metrics-exporter": 8080,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A running VMI and what hvprobe reports of it."""

    node: str
    namespace: str
    name: str
    hypervisor_type: str
    verified: bool = True
    fallback: bool = False

    @property
    def cause(self) -> str:
        """Why it is emulated, if it is."""
        return "emulation_allowed" if self.fallback else "cross_architecture"

    def labels(self) -> dict[str, str]:
        """The three labels that every per-VMI series has."""
        return {"node": self.node, "namespace": self.namespace, "name": self.name}


@dataclass(slots=True, kw_only=True)
class World:
    """What the components report now. Tests change it while Prometheus scrapes."""

    machines: list[Machine] = field(
        default_factory=lambda: [
            Machine(node="n1", namespace="default", name="alpha", hypervisor_type="kvm"),
            Machine(node="n1", namespace="lab", name="beta", hypervisor_type="tcg", fallback=True),
            Machine(node="n1", namespace="lab", name="mover", hypervisor_type="kvm"),
            Machine(node="n2", namespace="lab", name="other-arch", hypervisor_type="tcg"),
            Machine(
                node="n2",
                namespace="lab",
                name="delta",
                hypervisor_type="unknown",
                verified=False,
            ),
            Machine(node="n3", namespace="lab", name="orphan", hypervisor_type="kvm"),
        ]
    )
    lost_hooks: set[tuple[str, str]] = field(default_factory=set)
    """Pairs (node, hook) of the hooks that are no longer attached."""
    started: float = field(default_factory=time.monotonic)

    def replace(self, name: str, machine: Machine | None) -> None:
        """Replace the machine called ``name`` by another one; None: remove it."""
        kept = [machine for machine in self.machines if machine.name != name]
        self.machines = [*kept, machine] if machine else kept

    def grown(self, per_second: float) -> float:
        """The value of a counter that has grown since the start of the world."""
        return (time.monotonic() - self.started) * per_second

    def exposition(self, component: str, node: str) -> str:
        """The answer of ``component`` on ``node`` to a scrape, in the text format."""
        lines = {
            "agent": self._agent,
            "virt-handler": self._virt_handler,
            "virt-controller": self._virt_controller,
            "virt-operator": lambda _node: ["kubevirt_configuration_emulation_enabled 0"],
            "kube-state-metrics": self._kube_state_metrics,
            "kubevirt-metrics-exporter": self._metrics_exporter,
        }[component](node)
        return "\n".join(lines) + "\n"

    def _agent(self, node: str) -> list[str]:
        lines = []
        for machine in self.machines:
            if machine.node != node:
                continue
            labels = machine.labels()
            kind = machine.hypervisor_type
            lines += [
                _line("kubevirt_vmi_hypervisor_info", labels | {"hypervisor_type": kind}, 1),
                _line("kubevirt_vmi_hypervisor_verified", labels, machine.verified),
                _line("kubevirt_vmi_hypervisor_fallback", labels, machine.fallback),
            ]
            if kind == "tcg":
                cause = labels | {"cause": machine.cause}
                lines.append(_line("kubevirt_vmi_hypervisor_emulation_info", cause, 1))
            if kind == "kvm":
                exits, returns = self.grown(900), self.grown(30)
                lines += [
                    _line("kubevirt_vmi_vcpu_exits_total", labels, exits),
                    _line("kubevirt_vmi_vcpu_userspace_exits_total", labels, returns),
                    *self._vcpu_statistics(labels),
                ]
        return [*lines, *self._node_facts(node), *self._hooks(node), *self._self_metrics()]

    def _vcpu_statistics(self, labels: dict[str, str]) -> list[str]:
        """What an agent with --vcpu-stats says of an accelerated VMI."""
        by_class = "kubevirt_vmi_vcpu_exits_by_class_total"
        polling = "kubevirt_vmi_vcpu_halt_polling_seconds_total"
        lines = [
            _line(by_class, labels | {"class": name}, self.grown(rate))
            for name, rate in EXITS_BY_CLASS.items()
        ]
        lines += [
            _line(polling, labels | {"result": result}, self.grown(0.01))
            for result in ("success", "fail")
        ]
        return [
            *lines,
            _line("kubevirt_vmi_nested_guest_runs_total", labels, self.grown(5)),
            _line("kubevirt_vmi_guest_cpu_seconds_total", labels, self.grown(0.3)),
        ]

    def _metrics_exporter(self, node: str) -> list[str]:
        """kubevirt-metrics-exporter, which counts every VM that KVM runs, by its own label set."""
        lines = [
            _line("kme_kvm_scrape_errors_total", {}, 0),
            _line("kme_kvm_last_poll_timestamp_seconds", {}, time.time()),
        ]
        for machine in self.machines:
            if machine.node == node and machine.hypervisor_type != "tcg":
                pod = {"pod": f"virt-launcher-{machine.name}-x7k2p"}
                lines += [
                    _line(f"kubevirt_vmi_kvm_{name}_total", machine.labels() | pod, value)
                    for name, value in (
                        ("exits", self.grown(900)),
                        ("hypercalls", self.grown(7)),
                        ("tlb_flushes", self.grown(20)),
                        ("halt_exits", self.grown(100)),
                    )
                ]
        return lines

    def _node_facts(self, node: str) -> list[str]:
        usable = {"node": node, "hypervisor_type": "kvm"}
        lines = [_line("kubevirt_node_hypervisor_available", usable, node != "n4")]
        if node != "n4":
            module = usable | {"module": "kvm_amd", "nested": "false"}
            lines.append(_line("kubevirt_node_hypervisor_info", module, 1))
        return lines

    def _hooks(self, node: str) -> list[str]:
        lines = []
        for hook, backend in HOOKS.items():
            missing = (
                (node, hook) in self.lost_hooks
                or (node == "n2" and backend == "kprobe")
                or (node == "n4" and hook.startswith("kvm_"))
            )
            labels = {"hook": hook, "backend": "none" if missing else backend}
            lines.append(_line("hvprobe_hook_attached", labels, not missing))
            lines.append(_line("hvprobe_hook_missed_total", {"hook": hook}, 0))
        return lines

    def _self_metrics(self) -> list[str]:
        refreshes = int(self.grown(1))
        build = {"version": "0.1.0", "bcc_version": "0.31.0", "kernel": "6.12.0"}
        lines = [
            _line("hvprobe_build_info", build, 1),
            _line("hvprobe_ledger_entries", {}, 5),
            _line("hvprobe_ledger_capacity", {}, 16384),
            _line("hvprobe_ledger_dropped_total", {}, 0),
            _line("hvprobe_refresh_duration_seconds_sum", {}, refreshes * 0.004),
            _line("hvprobe_refresh_duration_seconds_count", {}, refreshes),
            _line("hvprobe_vmi_watch_up", {}, 1),
            _line("hvprobe_vmi_watch_last_sync_timestamp_seconds", {}, time.time()),
            _line("hvprobe_vmi_watch_restarts_total", {}, 0),
            _line("process_resident_memory_bytes", {}, 6e7),
            _line("process_cpu_seconds_total", {}, self.grown(0.01)),
        ]
        for bound in ("0.005", "0.05", "+Inf"):
            buckets = _line("hvprobe_refresh_duration_seconds_bucket", {"le": bound}, refreshes)
            lines.append(buckets)
        lines += [
            _line("hvprobe_refresh_errors_total", {"source": source}, 0)
            for source in ("ebpf", "proc", "kube")
        ]
        lines += [
            _line("hvprobe_refresh_failures_total", {"cause": cause}, 0)
            for cause in ("error", "deadline")
        ]
        lines.append(_line("hvprobe_refresh_failed", {}, 0))
        for state, number in (("attributed", 2), ("unattributed", 0), ("probe", 0)):
            lines.append(_line("hvprobe_processes", {"state": state}, number))
        return lines

    def _virt_handler(self, node: str) -> list[str]:
        lines = []
        for machine in self.machines:
            if machine.node != node:
                continue
            labels = machine.labels() | {
                "kubernetes_vmi_label_kubevirt_io_domain": machine.name,
                "kubernetes_vmi_label_kubevirt_io_nodeName": machine.node,
            }
            cores = 1.6 if machine.hypervisor_type == "tcg" else 0.4
            lines += [
                _line("kubevirt_vmi_cpu_usage_seconds_total", labels, self.grown(cores)),
                _line("kubevirt_vmi_memory_resident_bytes", labels, 3e8),
                _line("kubevirt_vmi_memory_domain_bytes", labels, 1e9),
            ]
            for vcpu in ("0", "1"):
                one = labels | {"id": vcpu}
                running = one | {"state": "running"}
                lines += [
                    _line("kubevirt_vmi_vcpu_seconds_total", running, self.grown(cores / 2)),
                    _line("kubevirt_vmi_vcpu_wait_seconds_total", one, self.grown(0.01)),
                    _line("kubevirt_vmi_vcpu_delay_seconds_total", one, self.grown(0.02)),
                ]
        return lines

    def _virt_controller(self, _node: str) -> list[str]:
        lines = []
        for machine in self.machines:
            info = machine.labels() | {
                "phase": "running",
                "os": "fedora",
                "workload": "server",
                "flavor": "small",
                "instance_type": "u1.medium",
                "preference": "fedora",
                "guest_os_kernel_release": "6.11.4-301.fc41.x86_64",
                "guest_os_machine": "q35",
                "guest_os_arch": "x86_64",
                "guest_os_name": "Fedora Linux",
                "guest_os_version_id": "41",
                "evictable": "true",
                "outdated": "false",
                "vmi_pod": f"virt-launcher-{machine.name}-x7k2p",
            }
            lines.append(_line("kubevirt_vmi_info", info, 1))
        return lines

    def _kube_state_metrics(self, _node: str) -> list[str]:
        return [
            _line("kube_node_labels", {"node": node, "label_kubevirt_io_schedulable": "true"}, 1)
            for node in ("n1", "n2", "n3", "n4")
        ]


def _line(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {float(value)}"


@contextmanager
def served(world: World) -> Iterator[str]:
    """Serve the world on loopback and yield ``host:port``. The path is /component/node."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, component, node = self.path.split("/")
            body = world.exposition(component, node).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Log nothing, because each scrape would be a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def scrape_configs(address: str) -> list[dict[str, Any]]:
    """Scrape jobs of the agents, by the shipped PodMonitor, and of KubeVirt's components."""
    agents = [
        Pod(name=f"hvprobe-{node}", node=node, address=address, path=f"/agent/{node}")
        for node in AGENT_NODES
    ]
    return [scrape_job(listed(agents), interval="1s"), *scrape_configs_of_others(address)]


def scrape_configs_of_others(address: str) -> list[dict[str, Any]]:
    """Scrape jobs with the target labels that prometheus-operator gives to each component.

    The labels are those of KubeVirt's ServiceMonitor, which honours the exposed ones.
    virt-controller and virt-operator have two replicas.
    """
    kubevirt = "kubevirt-prometheus-metrics"
    targets = [
        (kubevirt, "virt-handler", "kubevirt", node, f"virt-handler-{node}")
        for node in ("n1", "n2", "n3")
    ]
    targets += [
        (kubevirt, component, "kubevirt", "n1", f"{component}-{replica}")
        for component in ("virt-controller", "virt-operator")
        for replica in (1, 2)
    ]
    targets.append(("kube-state-metrics",) * 2 + ("monitoring", "n1", "kube-state-metrics-0"))
    jobs = [_scrape_config(address, *target) for target in targets]
    return [*jobs, *(_exporter_config(address, node) for node in ("n1", "n2", "n3"))]


def _exporter_config(address: str, node: str) -> dict[str, Any]:
    """The job of kubevirt-metrics-exporter's PodMonitor, which does not honour exposed labels.

    So the VMI's namespace and pod become exported_namespace and exported_pod.
    """
    exporter = "kubevirt-metrics-exporter"
    return {
        **_scrape_config(address, exporter, exporter, exporter, node, f"{exporter}-{node}"),
        "honor_labels": False,
    }


def _scrape_config(
    address: str, job: str, component: str, namespace: str, node: str, pod: str
) -> dict[str, Any]:
    labels = {
        "job": job,
        "namespace": namespace,
        "pod": pod,
        "container": component,
        "endpoint": "metrics",
        "instance": f"{pod}:{PORTS[job]}",
    }
    return {
        "job_name": f"{job}/{pod}",
        "honor_labels": True,
        "metrics_path": f"/{component}/{node}",
        "static_configs": [{"targets": [address], "labels": labels}],
    }
