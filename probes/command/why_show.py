# SPDX-License-Identifier: Apache-2.0
"""EDGE: prints an explanation in the form that suits stdout, and chooses the exit code.

Must not know what is explained, nor how a form is laid out (why_text.py).
"""

import json
import os
import shutil
import sys

from probes.command.console import ascii_only, console_for
from probes.host.hypervisors import HypervisorType
from probes.render.why_text import WIDTH, why_text
from probes.report.why import Explanation
from probes.report.why_json import why_json

EXIT_ACCELERATED = 0
EXIT_EMULATED = 3
EXIT_UNKNOWN = 4


def exit_code(explanation: Explanation) -> int:
    """Return the exit code for how the guest runs, whether that is verified or inferred."""
    kind = explanation.verdict.type
    if kind.accelerated:
        return EXIT_ACCELERATED
    return EXIT_EMULATED if kind is HypervisorType.TCG else EXIT_UNKNOWN


def print_explanation(explanation: Explanation, *, as_json: bool) -> None:
    """Print an explanation as JSON or as text, which is no wider than a terminal."""
    if as_json:
        print(json.dumps(why_json(explanation), indent=2), flush=True)  # noqa: T201 - data
        return
    width = WIDTH
    if sys.stdout.isatty():
        width = min(width, shutil.get_terminal_size().columns)
    plain_text = ascii_only(console_for(os.environ), os.environ)
    for line in why_text(explanation, width=width, ascii_only=plain_text):
        print(line)  # noqa: T201 - data
    sys.stdout.flush()
