# SPDX-License-Identifier: Apache-2.0
"""Renders what all pages have in common: head, header, alarm, footer, links. Pure.

Owns the Content-Security-Policy and the addresses of the pages, which are relative, so that they
hold behind a proxy with a path of its own. Must not know what a page shows.
"""

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

from probes.render.markup import Markup, element, joined, line, plain, text
from probes.render.page_style import STYLE
from probes.report.model import NodeReport
from probes.vmi.attribution import VmName, valid_vm_name

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Allows the page's own style. img-src covers the empty icon, without which browsers request
one."""

VMI_FOLDER = "vmi"
"""First part of the path of a VM's page: ``/vmi/NAMESPACE/NAME``."""


def document(*, title: Markup, header: Markup, main: Markup, root: str = "") -> bytes:
    """Render a page in UTF-8. root is the relative address of the page at ``/``."""
    parts = (
        Markup('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Markup('<meta name="color-scheme" content="light dark">\n'),
        element("title", title, Markup(" &ndash; hvprobe")),
        Markup('\n<link rel="icon" href="data:,">\n<style>'),
        Markup(STYLE),
        Markup("</style>\n</head>\n<body>\n"),
        header,
        Markup("<main>\n"),
        main,
        Markup("</main>\n<footer>"),
        *((element("a", plain("node"), href=root), Markup(" ")) if root else ()),
        element("a", plain("metrics"), href=f"{root}metrics"),
        Markup(" "),
        element("a", plain("readiness"), href=f"{root}readyz"),
        Markup("</footer>\n</body>\n</html>\n"),
    )
    return joined(parts).encode()


def vm_link(vm: VmName, content: Markup) -> Markup:
    """Link from the page at ``/`` to a VM's page; without an address if the name is invalid."""
    if valid_vm_name(vm.namespace, vm.name) is None:
        return element("a", content)
    return element("a", content, href=f"{VMI_FOLDER}/{quote(vm.namespace)}/{quote(vm.name)}")


def report_header(report: NodeReport | None, title: Markup) -> Markup:
    """Render the header: a title, and what was read when."""
    return joined(_header(report, title))


def _header(report: NodeReport | None, title: Markup) -> Iterator[Markup]:
    yield Markup("<header>\n")
    yield line("h1", title)
    if report is not None:
        taken = datetime.fromtimestamp(report.taken_unix_s, UTC)
        time = element(
            "time", plain(f"{taken:%Y-%m-%d %H:%M:%S} UTC"), datetime=f"{taken:%Y-%m-%dT%H:%M:%SZ}"
        )
        facts = [
            Markup("hvprobe "),
            text(report.version),
            Markup(" · Linux "),
            text(report.kernel),
            Markup(" · "),
            text(report.machine),
            Markup(" · "),
            time,
        ]
        yield line("p", *facts, class_="dim")
    yield Markup("</header>\n")


def failure_alarm(
    report: NodeReport | None, failure: str | None, last_known_s: float
) -> Iterator[Markup]:
    """Render why the report is not current; nothing if it is."""
    if failure is None:
        return
    rest = (
        " Showing the last known state, from the time above; /metrics omits the VMs "
        f"{last_known_s:g} s after the first failure."
        if report
        else " There is no data yet."
    )
    said = element("b", text(failure), Markup("."))
    log = Markup(" The agent&rsquo;s log has the details.")
    yield line("p", said, plain(rest), log, class_="alarm", role="alert")
