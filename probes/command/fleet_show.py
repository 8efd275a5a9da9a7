# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs ``hvprobe fleet``: reads the cluster, prints it, and chooses the exit code.

Owns which credentials are used, what goes to stdout and to stderr, and the progress bar. Must not
know how a cluster is read, merged or laid out.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from probes.command.console import ascii_only, console_for
from probes.command.fleet_completion import Wanted
from probes.command.fleet_flags import FleetCommand
from probes.command.fleet_settings import FleetSettings
from probes.fleet import table, views
from probes.fleet.answers import DoctorAnswer, Explained
from probes.fleet.api import FleetApi
from probes.fleet.explained import answered_text, doctor_lines, doctors_json
from probes.fleet.merge import merged
from probes.fleet.model import Fleet, FleetError, NodeAnswer
from probes.fleet.options import Form
from probes.fleet.reading import Cluster, Progress, Reach, vmis_at_once
from probes.fleet.selection import EXIT_MATCHED, EXIT_MISSING, exit_code, selected
from probes.judge.reasons import Outcome
from probes.render.terminal_text import visible
from probes.render.why_text import WIDTH
from probes.vmi.attribution import VmName
from probes.vmi.kube.credentials import InCluster, Kubeconfig

_DEFAULT_KUBECONFIG = Path(".kube/config")
_STYLES = {Outcome.GOOD: "", Outcome.DEGRADED: "yellow", Outcome.BAD: "bold red"}


Show = Callable[[], int]
"""Prints what was read, and returns the exit code."""


def run(settings: FleetSettings) -> int:
    """Run one command of ``hvprobe fleet``. Returns the exit code.

    Raises FleetError when the cluster cannot be read at all.
    """
    api = FleetApi(_credentials(settings), connections=settings.parallel)
    reach = Reach(
        namespace=settings.agent_namespace,
        selector=settings.agent_selector,
        account=settings.agent_account,
        deadline_s=settings.timeout_s,
        parallel=settings.parallel,
    )
    try:
        # Nothing is printed before the progress bar is gone.
        with _progress() as progress:
            show = _read(settings, Cluster(api, reach, progress))
    finally:
        api.close()
    return show()


def names_of(wanted: Wanted, settings: FleetSettings, typed: str) -> Sequence[str]:
    """Return what completes a name of the cluster; nothing if it cannot be read in a moment.

    typed: what the name begins with.
    """
    within = typed.partition("/")[0] if wanted is Wanted.VM and "/" in typed else None
    api = FleetApi(_credentials(settings), connections=1)
    try:
        vmis = vmis_at_once(api, frozenset({within} if within else ())).vmis
    finally:
        api.close()
    match wanted:
        case Wanted.VM:
            found = {f"{vmi.namespace}/{vmi.name}" for vmi in vmis}
        case Wanted.NAMESPACE:
            found = {vmi.namespace for vmi in vmis}
        case Wanted.NODE:
            found = {vmi.node_name for vmi in vmis if vmi.node_name is not None}
    return sorted(name for name in found if name.isascii() and name.isprintable())


def _read(settings: FleetSettings, cluster: Cluster) -> Show:
    match settings.command:
        case FleetCommand.WHY if settings.subject is not None:
            said, failures = cluster.why(settings.subject)
            return partial(_show_why, settings, settings.subject, said, failures)
        case FleetCommand.DOCTOR:
            found, error = cluster.doctors(settings.selection.nodes)
            return partial(_show_doctor, settings, found, error)
    chosen = settings.selection
    answers, vmis = cluster.snapshots(chosen.namespaces, chosen.nodes)
    fleet = selected(merged(answers, vmis, version=settings.version), chosen)
    return partial(_show_rows, settings, fleet, vmis.error)


def _show_rows(settings: FleetSettings, fleet: Fleet, error: str | None) -> int:
    of_vms = settings.command is FleetCommand.VMIS
    wide = settings.form in (Form.WIDE, Form.CSV)
    rows = views.vm_table(fleet, wide=wide) if of_vms else views.node_table(fleet.nodes, wide=wide)
    _notice(error)
    match settings.form:
        case Form.JSON:
            _print_json(views.fleet_json(fleet, version=settings.version, notice=error))
        case Form.CSV:
            _write(table.as_csv(rows))
        case _:
            console = console_for(os.environ)
            _print_lines(console, table.lines(rows, ascii_only=ascii_only(console, os.environ)))
            if of_vms:
                console.print(f"\n{views.summary(fleet)}")
    return exit_code(fleet, settings.fail_on)


def _show_why(
    settings: FleetSettings, vm: VmName, said: Explained | None, failures: Mapping[str, str]
) -> int:
    if said is None:
        for node, why in sorted(failures.items()):
            _notice(f"node {node}: {why}")
        if not failures:
            raise FleetError(f"no agent reports a VM {vm.namespace}/{vm.name} that runs")
        return EXIT_MISSING
    if settings.form is Form.JSON:
        _write_json(said.document)
    else:
        width = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
        console = console_for(os.environ)
        plain = ascii_only(console, os.environ)
        _write(
            "".join(
                f"{line}\n" for line in answered_text(said.answer, width=width, ascii_only=plain)
            )
        )
    return EXIT_MATCHED if said.answer.type in settings.fail_on else 0


def _show_doctor(
    settings: FleetSettings,
    found: Sequence[tuple[NodeAnswer, DoctorAnswer | None]],
    error: str | None,
) -> int:
    _notice(error)
    if settings.form is Form.JSON:
        _print_json(doctors_json(found, version=settings.version, notice=error))
    else:
        console = console_for(os.environ)
        plain = ascii_only(console, os.environ)
        _print_lines(console, doctor_lines(found, verbose=settings.verbose, ascii_only=plain))
    if any(checks is not None and checks.ability != "verified" for _, checks in found):
        return EXIT_MATCHED
    return EXIT_MISSING if any(checks is None for _, checks in found) else 0


def _credentials(settings: FleetSettings) -> InCluster | Kubeconfig:
    """Return the credentials that kubectl would use."""
    if settings.kubeconfig is not None:
        return Kubeconfig(file=settings.kubeconfig, context=settings.context)
    account = InCluster()
    try:
        file = Path.home() / _DEFAULT_KUBECONFIG
    except RuntimeError:  # a user of no name, without $HOME
        file = Path("/") / _DEFAULT_KUBECONFIG
    if file.is_file():
        return Kubeconfig(file=file, context=settings.context)
    if account.mounted():
        return account
    raise FleetError(f"no kubeconfig: {file} does not exist: set KUBECONFIG or give --kubeconfig")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Show on a terminal how many nodes are done, until the end of the block."""
    if not sys.stderr.isatty():
        yield Progress(begin=lambda _: None, step=lambda: None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("finding agents", total=None)
        yield Progress(
            begin=lambda total: bar.update(task, total=total, description="asking nodes"),
            step=lambda: bar.advance(task),
        )


def _print_lines(console: Console, lines: Iterable[table.TableLine]) -> None:
    for line in lines:
        style = "bold" if line.outcome is None else _STYLES[line.outcome]
        console.print(Text(line.text, style), soft_wrap=True)


def _print_json(found: object) -> None:
    _write_json(json.dumps(found, indent=2))


def _write_json(text: str) -> None:
    # JSON escapes every control character but this one, which an agent may send.
    _write(text.replace("\x7f", "\\u007f") + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _notice(line: str | None) -> None:
    """Print a line that is no data. It may hold foreign text."""
    if line is not None:
        print(f"hvprobe: {visible(line)}", file=sys.stderr)  # noqa: T201 - stdout carries data
