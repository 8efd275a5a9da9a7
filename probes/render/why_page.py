# SPDX-License-Identifier: Apache-2.0
"""Renders an explanation as the page at ``/vmi/NAMESPACE/NAME``. Pure.

The words are those of probes.report.why_words, the markup is in templates/why.html. Must not judge.
"""

from urllib.parse import quote

from probes.judge.reasons import Outcome
from probes.render.page_frame import Frame, framed
from probes.report.why import Explanation
from probes.report.why_words import headline, sections

ROOT = "../../"
"""The address of the page at ``/``, relative to this one."""
_MAX_WORDS_CHARS = 700
"""The most characters of a sentence: a VM's longest name has 317."""


def why_page(
    explanation: Explanation, *, failure: str | None, last_known_s: float, refreshing: bool = True
) -> bytes:
    """Render the page in UTF-8.

    failure says why the report is not current; None: it is. last_known_s is how long /metrics then
    keeps showing VMs. refreshing says whether the browser loads the page again by itself.
    """
    outcome = explanation.severity.outcome
    frame = Frame(
        title=explanation.title,
        report=explanation.report,
        failure=failure,
        last_known_s=last_known_s,
        refreshing=refreshing,
        own="./" if explanation.vm is None else f"./{quote(explanation.vm.name, errors='replace')}",
        root=ROOT,
    )
    values = {
        "most_title": _MAX_WORDS_CHARS,
        "headline": headline(explanation),
        "outcome": outcome if outcome is not Outcome.GOOD else None,
        "sections": sections(explanation),
    }
    return framed("why.html", frame, values)
