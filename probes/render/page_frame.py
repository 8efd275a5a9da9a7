# SPDX-License-Identifier: Apache-2.0
"""Renders what all pages have in common: head, header, alarm, refreshing, footer. Pure.

Owns the Content-Security-Policy and the addresses of the pages, which are relative, so that they
hold behind a proxy with a path of its own. Must not know what a page shows.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote

from probes.render.page_templates import STYLE, filled
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
REFRESH_EVERY_S = 10
"""Seconds after which a browser loads a page again."""
_OFF = "?refresh=off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What surrounds the main part of a page."""

    title: str
    """The heading. Foreign text."""
    report: NodeReport | None
    failure: str | None
    """Why the report is not current; None: it is."""
    last_known_s: float
    """How long /metrics then keeps showing VMs."""
    refreshing: bool
    """Whether the browser loads the page again by itself."""
    own: str
    """The page's own address without a query, relative to itself."""
    root: str = ""
    """The address of the page at ``/``, relative to this one; empty: it is this one."""


def framed(template: str, frame: Frame, values: Mapping[str, object]) -> bytes:
    """Render a page in UTF-8 by its template, which extends ``frame.html``."""
    report = frame.report
    common = {
        "frame": frame,
        "style": STYLE,
        "taken": datetime.fromtimestamp(report.taken_unix_s, UTC) if report else None,
        "every_s": REFRESH_EVERY_S,
        "off": _OFF,
        "query": "" if frame.refreshing else _OFF,
    }
    return filled(template, {**common, **values})


def is_refreshing(query: str) -> bool:
    """Return whether the query of a page's address lets the page refresh itself."""
    return parse_qs(query[:100]).get("refresh", [""])[-1] != "off"


def vm_address(vm: VmName) -> str | None:
    """Return the address of a VM's page, relative to ``/``; None: the name is invalid."""
    if valid_vm_name(vm.namespace, vm.name) is None:
        return None
    return f"{VMI_FOLDER}/{quote(vm.namespace)}/{quote(vm.name)}"
