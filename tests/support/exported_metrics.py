# SPDX-License-Identifier: Apache-2.0
"""The name of every series that an agent can export, taken from what the agent writes.

Must not know what is done with the names.
"""

import re
from dataclasses import dataclass, replace

from probes.render.exposition import Exposition, Format
from probes.render.metrics import families, refresh_families, tls_families
from probes.vmi.model import WatchStatus
from tests.support.facts import health
from tests.support.rich_report import measured_report, rich_report

_HEAD = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)
_WATCH = WatchStatus(
    up=True, synced=True, last_sync_unix_s=1.0, restarts=0, error=None, malformed_total=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tls:
    reload_failed: bool = False
    expiry_unix_s: float = 0.0


def exported_metrics() -> set[str]:
    """With ``--vcpu-stats``, a watch of the API server and TLS, but for process_* and python_*."""
    reports = [replace(report(), health=health(vmi_watch=_WATCH)) for report in REPORTS]
    written = [
        *(family for report in reports for family in families(report)),
        *tls_families(_Tls()),
        *refresh_families(failed=False, failures={"error": 0}, durations=[(1, 0)], total_s=0),
    ]
    found = set()
    for name, kind in _HEAD.findall("".join(Exposition().write(written, Format.TEXT))):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


REPORTS = (rich_report, measured_report)
"""What all kinds of VMs and hooks look like, and what a VM with vCPU statistics does."""
