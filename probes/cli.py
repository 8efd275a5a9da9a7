"""The command ``hvprobe``: parses, logs, runs, and turns expected errors into one line each.

Exit codes: 0 fine, 1 failed at run time, 2 wrong usage; ``doctor`` has its own (see doctor.py).
Data goes to stdout, everything else to stderr.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence

from probes.settings import EXIT_USAGE, Command, LogFormat, Settings, UsageError, parse


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    from probes.agent import version

    try:
        settings = parse(
            sys.argv[1:] if arguments is None else arguments, os.environ, version=version()
        )
    except UsageError as err:
        return _fail(str(err), EXIT_USAGE)
    _start_logging(settings)
    try:
        return _run(settings)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader of our output has gone; what Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(settings: Settings) -> int:
    from probes import agent, doctor
    from probes.server import BindError, TlsFilesError

    match settings.command:
        case Command.AGENT:
            try:
                agent.run_agent(settings)
            except (BindError, TlsFilesError) as err:
                return _fail(str(err), 1)
        case Command.SNAPSHOT:
            print(agent.snapshot(settings), flush=True)
        case Command.DOCTOR:
            report = agent.report_once(settings)
            print("\n".join(doctor.lines(report)), flush=True)
            return doctor.ability(report)
        case Command.LIVE:
            return _fail("live is not part of this version", 1)
    return 0


def _start_logging(settings: Settings) -> None:
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
