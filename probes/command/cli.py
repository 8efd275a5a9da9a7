# SPDX-License-Identifier: Apache-2.0
"""Runs the command ``hvprobe``: parses, logs, runs, and turns expected errors into one line each.

Exit codes: 0 success, 1 failure at run time, 2 wrong usage; ``doctor`` has its own (see doctor.py),
and so have ``why`` (see why_show.py) and ``fleet`` (see fleet_show.py). ``live`` succeeds when its
user, a signal or the end of its terminal ends it.
Data go to stdout, everything else to stderr.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from probes.command import deadline, fleet_completion, inputs
from probes.command.flags import Command, UsageError, command_line
from probes.command.fleet_settings import FleetSettings
from probes.command.settings import (
    EXIT_USAGE,
    AgentSettings,
    CompletionSettings,
    DoctorSettings,
    LiveSettings,
    NodeSettings,
    SnapshotSettings,
    WhySettings,
    parse,
)
from probes.command.values import LogFormat

EXIT_INTERRUPTED = 130
"""The exit code that shells give a program that Ctrl-C ended."""


class _JsonLines(logging.Formatter):
    """Formats each log record as one JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def version() -> str:
    """Return the version of the installed distribution."""
    try:
        return metadata.version("hvprobe")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def main(arguments: Sequence[str] | None = None, *, apart: bool = False) -> int:
    """Run one command. Returns the exit code.

    apart runs commands that refresh only once in a process of their own (deadline.py), so that the
    program ends even if a refresh does not.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:2] == [Command.FLEET, fleet_completion.COMPLETE]:
        return _complete(words[2:])
    try:
        settings = parse(words, os.environ, version=version())
        inputs.check(settings)
    except UsageError as err:
        return _fail(str(err), EXIT_USAGE)
    if isinstance(settings, CompletionSettings):
        # Imported here, because only this command needs the library that makes scripts.
        from probes.command import completion

        parser = command_line({}, version=version())
        print(completion.script(parser, settings.shell), end="", flush=True)
        return 0
    if isinstance(settings, FleetSettings):
        return _run_fleet(settings)
    _start_logging(settings)
    if apart and settings.refreshes_once:
        return deadline.apart(lambda: _finish(settings), deadline_s=deadline.COMMAND_DEADLINE_S)
    return _finish(settings)


def _complete(words: Sequence[str]) -> int:
    """Print what continues a command line of ``kubectl hvprobe``. Errors offer nothing."""
    found = fleet_completion.offered(words)
    names: Sequence[str] = ()
    if found.wanted is not None:
        from probes.command import fleet_show
        from probes.fleet.model import FleetError

        with contextlib.suppress(FleetError, UsageError):
            settings = parse([Command.FLEET, *found.reach], os.environ, version=version())
            if isinstance(settings, FleetSettings):
                names = fleet_show.names_of(found.wanted, settings, found.typed)
    print("\n".join(found.lines(names)), flush=True)
    return 0


def _run_fleet(settings: FleetSettings) -> int:
    # Imported here, because it needs the API server's client. It runs on machines that are no
    # nodes, so nothing of it may need BPF, /proc or Linux.
    from probes.command import fleet_show
    from probes.fleet.model import FleetError
    from probes.render.terminal_text import visible

    logging.basicConfig(level=logging.ERROR, format="hvprobe: %(message)s")
    try:
        return _ended(lambda: fleet_show.run(settings))
    except FleetError as err:
        return _fail(visible(str(err)), 1)


def _finish(settings: NodeSettings) -> int:
    try:
        return _ended(lambda: _run(settings))
    except deadline.RefreshTimeoutError as err:
        return _fail(str(err), 1)


def _ended(run: Callable[[], int]) -> int:
    """Run a command that Ctrl-C or the reader of stdout may end."""
    try:
        return run()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone. Output that Python still has to flush is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(settings: NodeSettings) -> int:
    # Imported here, because a wrong command line or --version needs none of it.
    from ebpf.errors import BpfUnavailableError
    from probes.command import agent
    from probes.serve.listeners import BindError
    from probes.serve.tls_files import TlsFilesError

    try:
        match settings:
            case AgentSettings():
                agent.run_agent(settings)
            case SnapshotSettings():
                print(agent.snapshot(settings), flush=True)
            case WhySettings():
                return _explain(settings)
            case DoctorSettings():
                return _examine(settings)
            case LiveSettings():
                from probes.command.show import import_early

                import_early(settings.live)
                agent.run_live(settings)
    except (BindError, TlsFilesError, BpfUnavailableError, agent.NotPermittedError) as err:
        return _fail(str(err), 1)
    return 0


def _examine(settings: DoctorSettings) -> int:
    from probes.command import agent
    from probes.command.doctor_show import print_checks
    from probes.command.examine import examine

    checks, ability = examine(settings, agent.report_once(settings))
    print_checks(checks, ability, as_json=settings.json)
    return ability


def _explain(settings: WhySettings) -> int:
    from probes.command import agent
    from probes.command.show import ONCE_WINDOW_S
    from probes.command.why_show import exit_code, print_explanation
    from probes.report.why import absence, explain

    report = agent.report_after(settings, seconds=ONCE_WINDOW_S)
    explanation = explain(report, settings.subject)
    if explanation is None:
        return _fail(absence(report, settings.subject), 1)
    print_explanation(explanation, as_json=settings.json)
    return exit_code(explanation)


def _start_logging(settings: NodeSettings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines()
        if settings.log_format is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)


def _fail(line: str, code: int) -> int:
    print(f"hvprobe: {line}", file=sys.stderr)
    return code
