# SPDX-License-Identifier: Apache-2.0
"""EDGE: prints the doctor's checks in the form that suits stdout.

Must not know what is checked, nor how a form is laid out (doctor_view.py).
"""

import os
import shutil
import sys
from collections.abc import Sequence

from probes.command.console import ascii_only, console_for
from probes.render import doctor_view
from probes.render.doctor import Ability, Check


def print_checks(checks: Sequence[Check], ability: Ability, *, as_json: bool) -> None:
    """Print the checks: for a person if stdout is a terminal, otherwise one line per check."""
    console = console_for(os.environ)
    if as_json:
        print(doctor_view.to_json(checks, ability), flush=True)  # noqa: T201 - data
        return
    if not sys.stdout.isatty():
        print("\n".join(doctor_view.lines(checks, ability)), flush=True)  # noqa: T201 - data
        return
    width = shutil.get_terminal_size().columns
    plain_text = ascii_only(console, os.environ)
    for line in doctor_view.screen(checks, ability, width=width, ascii_only=plain_text):
        console.print(line, soft_wrap=True)
