# SPDX-License-Identifier: Apache-2.0
"""Composes edges, collector, renderers and server: the composition root.

Owns lifetimes: attach first, detach last. Must not judge, name or render anything itself.
"""

import asyncio
import contextlib
import gc
import json
import logging
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from probes.command.admission import gate_of
from probes.command.deadline import (
    REFRESH_DEADLINE_S,
    STOP_DEADLINE_S,
    end_after,
    within,
)
from probes.command.event_feed import EventFeed
from probes.command.examine import examine, features
from probes.command.sessions import open_sessions
from probes.command.settings import AgentSettings, LiveSettings, NodeSettings, SnapshotSettings
from probes.host.accelerators import Accelerators
from probes.host.device_age import DeviceAge
from probes.host.emulation_facts import EmulationReader
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.reader import Host
from probes.render.doctor_json import doctor_json
from probes.report.collector import NodeCollector
from probes.report.model import NodeReport, to_json
from probes.report.ports import HostEdges
from probes.report.vocabulary import watch_error
from probes.serve.endpoints import OPEN_TO_ALL, Endpoints
from probes.serve.http.server import Server
from probes.serve.limits import Limits
from probes.serve.refresh import RefreshCache
from probes.vmi.kube.credentials import InCluster, Kubeconfig

if TYPE_CHECKING:
    from probes.vmi.kube.watch import VmiWatch

log = logging.getLogger(__name__)

FIRST_LIST_WAIT_S = 5.0
"""How long commands that refresh only once wait for the first list of VMIs."""
_COLLECTED_AFTER = 50_000
"""How many more objects than before have to exist until the cycle collector examines them."""


@contextlib.contextmanager
def observing(settings: NodeSettings) -> Iterator[NodeCollector]:
    """Make a collector of this node with its probes attached.

    Probes that cannot be attached are left out. All are detached at the end.
    """
    _raise_descriptor_limit()
    with contextlib.ExitStack() as opened:
        # This comes first, because the API server answers while the BPF programs are compiled.
        watch = _open_watch(settings)
        if watch is not None:
            opened.callback(watch.stop)
        sessions = open_sessions(settings)
        opened.callback(sessions.close)
        processes = Host(
            proc_root=settings.proc_root,
            vcpu_statistics=settings.reads_vcpu_statistics,
            memory=sessions.statistics,
        )
        opened.callback(processes.close)
        if watch is not None and settings.refreshes_once:
            _wait_for_names(watch)
        yield NodeCollector(
            node=settings.node,
            version=settings.version,
            ledger=sessions.ledger,
            ledger_error=str(sessions.error) if sessions.error else None,
            ledger_refused=sessions.error is not None and sessions.error.refused,
            host=HostEdges(
                processes=processes,
                virtualization=Accelerators(
                    sys_root=settings.sys_root, proc_root=settings.proc_root
                ),
                emulation=EmulationReader(proc_root=settings.proc_root, sys_root=settings.sys_root),
                device=DeviceAge(
                    BY_TYPE[HypervisorType.KVM],
                    proc_root=settings.proc_root,
                    sys_root=settings.sys_root,
                ),
            ),
            vmis=watch,
        )


def _raise_descriptor_limit() -> None:
    """Allow as many open descriptors as this process may have.

    Up to two are kept of each VM (probes.host.statistics_listing), and many systems permit only
    1024 unless a process asks for more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_watch(settings: NodeSettings) -> "VmiWatch | None":
    """Start to follow the cluster's API server; None: standalone, there is no cluster."""
    config = _cluster(settings)
    if config is None:
        if not settings.standalone:
            log.info(
                "no service account is mounted: standalone mode, VMs are named by libvirt domain"
            )
        return None
    from probes.vmi.kube.watch import VmiWatch  # noqa: PLC0415 - standalone saves its 13 MiB

    watch = VmiWatch(config, settings.node, log.warning)
    watch.start()
    log.info("the API server names the VMs of node %s", settings.node)
    return watch


def _cluster(settings: NodeSettings) -> InCluster | Kubeconfig | None:
    """Return the credentials for the API server; None: standalone, there is no cluster."""
    if settings.standalone:
        return None
    if settings.kubeconfig is not None:
        return Kubeconfig(file=settings.kubeconfig)
    account = InCluster()
    return account if account.mounted() else None


def _wait_for_names(watch: "VmiWatch") -> None:
    if not watch.wait_synced(FIRST_LIST_WAIT_S):
        log.warning("no VMI names after %g s: %s", FIRST_LIST_WAIT_S, watch_error(watch.status()))


def run_agent(settings: AgentSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises BindError when it cannot listen, TlsFilesError when the TLS files cannot be used.
    """
    with observing(settings) as collector, _with_events(settings, collector.refresh) as refresh:
        # The objects that exist now, mostly modules, stay until the end. The cycle collector need
        # not examine them, which would delay a scrape by as long as it takes itself. A refresh
        # makes some thousand objects without cycles, so it is examined more rarely, too.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECTED_AFTER)
        asyncio.run(_serve(settings, refresh))


@contextlib.contextmanager
def _with_events(
    settings: AgentSettings, refresh: Callable[[], NodeReport]
) -> Iterator[Callable[[], NodeReport]]:
    """Make a refresh that also has Events written, if they are wanted."""
    config = _cluster(settings)
    if not settings.events or config is None:
        yield refresh
        return
    from probes.vmi.kube.event_writer import EventWriter  # noqa: PLC0415 - the watch has loaded it

    writer = EventWriter(config, log.warning)
    writer.start()
    try:
        yield EventFeed(refresh, writer.write).refresh
    finally:
        writer.stop()


async def _serve(settings: AgentSettings, refresh: Callable[[], NodeReport]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    cache = RefreshCache(refresh)
    server = Server(listen=settings.listen, tls=settings.tls, limits=Limits(), log=log)

    def examined(report: NodeReport) -> dict[str, object]:
        return doctor_json(*examine(settings, report))

    endpoints = Endpoints(
        cache, tls=(lambda: server.tls_state) if settings.tls else None, examine=examined
    )
    await server.start(
        endpoints.routes, open_to_all=OPEN_TO_ALL, gate=gate_of(settings, _cluster(settings))
    )
    scheme = "https" if settings.tls else "http"
    for host, port in server.addresses:
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s://%s:%d/metrics", scheme, shown, port)
    await stop.wait()
    log.info("stopping")
    end_after(STOP_DEADLINE_S, log)
    await server.stop()
    await cache.stop()


def snapshot(settings: SnapshotSettings) -> str:
    """Return one report as JSON text. Raises RefreshTimeoutError when it takes too long."""
    with observing(settings) as collector:
        return json.dumps(to_json(_refresh_once(collector)), indent=2)


class NotPermittedError(Exception):
    """This process lacks privileges that the command needs.

    The message is one line with the remedy.
    """


def run_live(settings: LiveSettings) -> None:
    """Show the live view until the user or a signal ends it.

    Raises NotPermittedError when privileges are missing, RefreshTimeoutError when a refresh takes
    too long, and BpfUnavailableError when exit reasons are requested but unavailable. Without exit
    reasons it needs no BPF and shows what /proc shows.
    """
    from ebpf.exit_reasons.session import ReasonsSession  # noqa: PLC0415 - of live only
    from probes.command.show import show  # noqa: PLC0415 - the agent saves rich
    from probes.host.vcpu_thread_reader import VcpuThreadReader  # noqa: PLC0415 - of live only
    from probes.render.live.frame_source import FrameSource  # noqa: PLC0415 - the agent saves rich
    from probes.render.live.terminal import progress  # noqa: PLC0415 - the agent saves rich

    missing = features(settings).capabilities_missing
    if missing:
        raise NotPermittedError(
            f"live may not look at other users' VMs, {' and '.join(missing)} missing: "
            "run it as root, or by kubectl exec in the agent's pod"
        )
    with progress("hvprobe: attaching the probes ...") as done, contextlib.ExitStack() as stack:
        collector = stack.enter_context(observing(settings))
        options = settings.live
        source = FrameSource(
            collector.refresh,
            options.selection,
            lambda: ReasonsSession(sys_root=settings.sys_root),
            VcpuThreadReader(proc_root=settings.proc_root).read,
        )
        stack.callback(source.close)
        if options.reasons:
            source.count_all()
        show(source, options, begin=done)


def report_once(settings: NodeSettings) -> NodeReport:
    """Return one report. Raises RefreshTimeoutError when it takes too long."""
    with observing(settings) as collector:
        return _refresh_once(collector)


def report_after(settings: NodeSettings, *, seconds: float) -> NodeReport:
    """Return the report of a node that was observed for some time.

    Raises RefreshTimeoutError when a refresh takes too long.
    """
    with observing(settings) as collector:
        _refresh_once(collector)
        time.sleep(seconds)
        return _refresh_once(collector)


def _refresh_once(collector: NodeCollector) -> NodeReport:
    return within(collector.refresh, deadline_s=REFRESH_DEADLINE_S)
