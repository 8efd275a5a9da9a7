"""The composition root: puts edges, observer, renderers and server together.

Owns lifetimes: attach first, detach last. Must not judge, name or render anything itself.
"""

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Iterator
from importlib import metadata

from ebpf.errors import BpfUnavailableError
from ebpf.session import Session, in_initial_pid_namespace
from probes.accelerators import Accelerators
from probes.host import Host
from probes.observer import Observer
from probes.report import NodeReport, to_json
from probes.server import Limits, Server
from probes.settings import Settings
from probes.site import Site

log = logging.getLogger(__name__)


def version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version("hvprobe")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@contextlib.contextmanager
def observing(settings: Settings) -> Iterator[Observer]:
    """An observer of this node, its probes attached as far as they can be; detached at the end."""
    session, error = _open_session(settings)
    try:
        yield Observer(
            node=settings.node,
            version=version(),
            ledger=session,
            ledger_error=error,
            processes=Host(proc_root=settings.proc_root),
            virtualization=Accelerators(sys_root=settings.sys_root, proc_root=settings.proc_root),
        )
    finally:
        if session is not None:
            session.close()


def _open_session(settings: Settings) -> tuple[Session | None, str | None]:
    try:
        if not in_initial_pid_namespace():
            raise BpfUnavailableError(
                "hvprobe runs in a PID namespace of its own, where the kernel's process numbers "
                "mean nothing: give the pod hostPID: true"
            )
        session = Session(sys_root=settings.sys_root)
    except BpfUnavailableError as err:
        log.warning("no BPF, verdicts can only be inferred: %s", err)
        return None, str(err)
    for status in session.hooks:
        if not status.attached:
            log.info("hook %s is not attached: %s", status.hook.name, status.reason)
    return session, None


def run_agent(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises BindError and TlsFilesError before serving."""
    with observing(settings) as observer:
        asyncio.run(_serve(settings, observer))


async def _serve(settings: Settings, observer: Observer) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    site = Site(observer.look)
    server = Server(
        listen=settings.listen, routes=site.routes, tls=settings.tls, limits=Limits(), log=log
    )
    await server.start()
    scheme = "https" if settings.tls else "http"
    for host, port in server.addresses:
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s://%s:%d/metrics", scheme, shown, port)
    await stop.wait()
    log.info("stopping")
    await server.stop()
    await site.look.stop()


def snapshot(settings: Settings) -> str:
    """One report as JSON text."""
    with observing(settings) as observer:
        return json.dumps(to_json(observer.look()), indent=2)


def report_once(settings: Settings) -> NodeReport:
    """One report."""
    with observing(settings) as observer:
        return observer.look()
