# SPDX-License-Identifier: Apache-2.0
"""Renders an explanation as the page at ``/vmi/NAMESPACE/NAME``. Pure.

Owns the page's markup; the words are those of probes.report.why_words. Must not judge, and must not
trust any text (markup.py escapes it).
"""

from collections.abc import Iterator

from probes.judge.reasons import Outcome
from probes.render.markup import Markup, element, isolated, joined, line, plain, text
from probes.render.page_frame import document, failure_alarm, report_header
from probes.render.page_style import CLASSES
from probes.report.why import Explanation
from probes.report.why_words import Section, headline, sections

ROOT = "../../"
"""The address of the page at ``/``, relative to this one."""
_MAX_WORDS_CHARS = 700
"""The most characters of a sentence: a VM's longest name has 317."""


def why_page(explanation: Explanation, *, failure: str | None, last_known_s: float) -> bytes:
    """Render the page in UTF-8.

    failure says why the report is not current; None: it is. last_known_s is how long /metrics then
    keeps showing VMs.
    """
    report = explanation.report
    parts = [*failure_alarm(report, failure, last_known_s)]
    outcome = explanation.severity.outcome
    style = CLASSES[outcome] if outcome is not Outcome.GOOD else ""
    said = isolated(headline(explanation), most=_MAX_WORDS_CHARS)
    parts.append(line("p", element("b", said), class_=style))
    for section in sections(explanation):
        parts += _section(section)
    title = explanation.title
    return document(
        title=text(title, most=_MAX_WORDS_CHARS),
        header=report_header(report, isolated(title, most=_MAX_WORDS_CHARS)),
        main=joined(parts),
        root=ROOT,
    )


def _section(section: Section) -> Iterator[Markup]:
    yield Markup("<section>\n")
    yield line("h2", plain(section.title))
    yield Markup("<table>\n<tbody>\n")
    for each in section.lines:
        yield line(
            "tr",
            element("th", plain(each.label), scope="row"),
            element("td", isolated(each.words, most=_MAX_WORDS_CHARS)),
        )
    yield Markup("</tbody>\n</table>\n</section>\n")
