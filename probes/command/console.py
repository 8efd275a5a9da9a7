# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out which colours and characters stdout can show.

Must not know what is printed.
"""

import sys
from collections.abc import Mapping

from rich.console import Console

from probes.render.terminal_text import utf8_locale


class _PipeConsole(Console):
    """Leaves a broken pipe to the caller; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this while it handles the BrokenPipeError


def console_for(environment: Mapping[str, str]) -> Console:
    """Make a console for stdout, without colours if NO_COLOR is set or stdout is no terminal."""
    terminal = sys.stdout.isatty()
    return _PipeConsole(
        file=sys.stdout,
        force_terminal=terminal,
        no_color=True if environment.get("NO_COLOR") or not terminal else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def ascii_only(console: Console, environment: Mapping[str, str]) -> bool:
    """Whether stdout cannot show more than ASCII correctly."""
    return not (utf8_locale(environment) and console.encoding.lower().startswith("utf"))
