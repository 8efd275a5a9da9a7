"""NodeReport → the page at ``/``. Pure renderer.

Owns the page's markup, style and Content-Security-Policy. Must not judge, and must not trust any
text: names come from command lines and may hold markup, control characters or marks that turn the
direction of what follows. The page needs no script and nothing from elsewhere.
"""

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from probes.identity import VmName
from probes.page_style import STYLE
from probes.report import CounterTrust, NodeReport, ProcessState, VmiReport
from probes.verdict import Verdict
from probes.vmm import HypervisorType

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing but the page's own style; img-src for the empty icon, or browsers ask for one."""

LONGEST_TEXT = 120
"""Characters shown of a text that is not ours. KubeVirt's longest guest name has 317."""

Rates = tuple[float | None, float | None]
"""VM exits and returns to user space a second; None: not counted, or not seen twice."""
_UNKNOWN = '<span class="dim">&ndash;</span>'


def page(
    report: NodeReport | None,
    *,
    previous: NodeReport | None,
    failure: str | None,
    last_known_s: float,
) -> bytes:
    """Draw the page in UTF-8.

    report: the newest; None: there is none yet. previous: an older one, for rates. failure: why
    report is not from now. last_known_s: how long /metrics goes on showing VMs then.
    """
    node = report.node if report else "this node"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f'<title>{visible(node)} &ndash; hvprobe</title>\n<link rel="icon" href="data:,">\n',
        f"<style>{STYLE}</style>\n</head>\n<body>\n",
        *_header(report, node),
        "<main>\n",
        *_failure(report, failure, last_known_s),
    ]
    if report is not None:
        parts += _summary(report)
        parts += _vmis(report, previous)
        parts += _others(report)
        parts += _health(report)
    parts.append('</main>\n<footer><a href="metrics">metrics</a> <a href="readyz">readiness</a>')
    parts.append("</footer>\n</body>\n</html>\n")
    return "".join(parts).encode()


def visible(text: str) -> str:
    """Text that is not ours as markup: nothing in it acts, everything in it can be seen."""
    cut = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    shown = (each if each.isprintable() else f"\\u{{{ord(each):x}}}" for each in cut)
    return html.escape("".join(shown))


def _foreign(text: str) -> str:
    """The same, kept from turning the direction of its neighbours and from leaving its line."""
    return f"<bdi>{visible(text)}</bdi>"


def _header(report: NodeReport | None, node: str) -> Iterator[str]:
    yield f"<header>\n<h1>{_foreign(node)}</h1>\n"
    if report is not None:
        taken = datetime.fromtimestamp(report.taken_unix_s, UTC)
        yield (
            f'<p class="dim">hvprobe {visible(report.version)} · Linux {visible(report.kernel)} · '
            f'{visible(report.machine)} · <time datetime="{taken:%Y-%m-%dT%H:%M:%SZ}">'
            f"{taken:%Y-%m-%d %H:%M:%S} UTC</time></p>\n"
        )
    yield "</header>\n"


def _failure(report: NodeReport | None, failure: str | None, last_known_s: float) -> Iterator[str]:
    if failure is None:
        return
    rest = (
        "What follows is the last that was seen, at the time above; /metrics leaves the VMs out "
        f"{last_known_s:g} s after the first failure."
        if report
        else "Nothing has been seen yet."
    )
    yield f'<p class="alarm" role="alert"><b>{visible(failure)}.</b> {rest} '
    yield "The agent&rsquo;s log says more.</p>\n"


def _summary(report: NodeReport) -> Iterator[str]:
    kinds = Counter(vmi.verdict.type for vmi in report.vmis)
    fallbacks = sum(vmi.fallback is True for vmi in report.vmis)
    inferred = sum(not vmi.verdict.verified for vmi in report.vmis)
    yield '<ul class="tiles">\n'
    yield _tile(len(report.vmis), "VM" if len(report.vmis) == 1 else "VMs")
    for kind, style in _STYLES.items():
        if kinds[kind]:
            yield _tile(kinds[kind], kind.value, style)
    if fallbacks:
        yield _tile(fallbacks, "emulated without need", "bad")
    if inferred:
        yield _tile(inferred, "not verified", "warn")
    yield "</ul>\n"


_STYLES = {
    HypervisorType.KVM: "good",
    HypervisorType.MSHV: "good",
    HypervisorType.TCG: "warn",
    HypervisorType.UNKNOWN: "",
}


def _tile(count: int, text: str, style: str = "") -> str:
    return f'<li class="{style}"><b>{count}</b> {text}</li>\n'


def _vmis(report: NodeReport, previous: NodeReport | None) -> Iterator[str]:
    yield "<section>\n<h2>Virtual machines</h2>\n"
    if not report.vmis:
        yield "<p>No VM with a name runs on this node.</p>\n</section>\n"
        return
    window_s = report.taken_unix_s - previous.taken_unix_s if previous else 0.0
    rates = _rates(report, previous, window_s)
    rows = []
    for vmi in sorted(report.vmis, key=_attention):
        exits, userspace_exits = rates.get(vmi.vm, (None, None))
        namespace, name = _foreign(vmi.vm.namespace), _foreign(vmi.vm.name)
        rows.append(
            (
                f'<span class="dim">{namespace}/</span>{name}',
                _type(vmi.verdict, fallback=vmi.fallback),
                _verified(vmi.verdict),
                _rate(exits),
                _rate(userspace_exits),
                _reasons(vmi.verdict),
            )
        )
    yield from _table(("VM", "Type", "Sure", "Exits/s", "To QEMU/s", "Why"), rows)
    over = f"are over {window_s:.0f} s" if window_s > 0 else "need two looks: load the page again"
    yield f'<p class="dim">Rates {over}. {_UNKNOWN}: not counted here.</p>\n</section>\n'


def _attention(vmi: VmiReport) -> tuple[bool, bool, bool, str, str]:
    """Order of VMs: what somebody should look at comes first."""
    unknown = vmi.verdict.type is HypervisorType.UNKNOWN
    name = (vmi.vm.namespace, vmi.vm.name)
    return (vmi.fallback is not True, not unknown, vmi.verdict.verified, *name)


def _rates(report: NodeReport, previous: NodeReport | None, window_s: float) -> dict[VmName, Rates]:
    """By VM; one that was restarted meanwhile is another process, hence has no rate."""
    if previous is None or window_s <= 0:  # 0 or less: the clock was set
        return {}

    def rate(now: int | None, then: int | None) -> float | None:
        return None if now is None or then is None or now < then else (now - then) / window_s

    before = {vmi.vm: vmi for vmi in previous.vmis}
    return {
        vmi.vm: (rate(vmi.exits, old.exits), rate(vmi.userspace_exits, old.userspace_exits))
        for vmi in report.vmis
        if (old := before.get(vmi.vm)) is not None and old.vmm == vmi.vmm
    }


def _others(report: NodeReport) -> Iterator[str]:
    others = [it for it in report.processes if it.state is not ProcessState.ATTRIBUTED]
    if not others:
        return
    yield "<section>\n<h2>VMM processes without a VM</h2>\n"
    rows = [
        (
            f'{_foreign(process.comm)} <span class="dim">{process.vmm.tgid}</span>',
            _type(process.verdict),
            _verified(process.verdict),
            _UNKNOWN if process.guest_name is None else _foreign(process.guest_name),
            "capability probe" if process.state is ProcessState.PROBE else "no VM of this name",
            _reasons(process.verdict),
        )
        for process in others
    ]
    yield from _table(("Process", "Type", "Sure", "Guest name", "State", "Why"), rows)
    yield "</section>\n"


def _health(report: NodeReport) -> Iterator[str]:
    health = report.health
    yield "<section>\n<h2>Probe health</h2>\n<dl>\n"
    for accelerator in report.accelerators:
        yield _item(
            f"{accelerator.type.value} on this node",
            {True: "usable", False: "not usable", None: "not tried"}[accelerator.available],
            accelerator.reason,
            style={True: "good", False: "bad", None: "warn"}[accelerator.available],
        )
    module = report.virtualization.module or "none"
    nested = {True: "the node is itself a VM", False: "on bare hardware", None: None}
    yield _item("KVM module", module, nested[report.virtualization.nested])
    if health.ledger_error is not None:
        yield _item("kernel table", "none", health.ledger_error, style="bad")
    else:
        full = health.ledger_entries >= health.ledger_capacity or health.ledger_dropped_total > 0
        yield _item(
            "kernel table",
            f"{health.ledger_entries} of {health.ledger_capacity}",
            f"{health.ledger_dropped_total} events dropped",
            style="bad" if full else "good",
        )
    for label, trust in (
        ("VM exits", health.exits_trust),
        ("returns to QEMU", health.userspace_exits_trust),
    ):
        yield _item(label, *_TRUSTS[trust])
    if (watch := health.vmi_watch) is not None:
        followed = watch.is_current
        state = "followed" if followed else "last known" if watch.synced else "not known"
        yield _item("VMIs", state, watch.error, style="good" if followed else "bad")
    for source, count in health.errors_total.items():
        yield _item(f"errors of {source.value}", str(count), style="bad" if count else "good")
    if not report.proc_readable:
        yield _item("/proc", "not readable", "give the host's with --proc", style="bad")
    yield "</dl>\n"
    rows = [
        (
            visible(status.hook.name),
            f'<b class="{"good" if status.attached else "warn"}">{status.backend.value}</b>',
            visible(status.hook.proves),
            visible(status.reason or ""),
        )
        for status in health.hooks
    ]
    yield from _table(("Hook", "Attached by", "Proves", "Why not"), rows)
    yield "</section>\n"


_TRUSTS = {
    CounterTrust.PROVEN: ("counted", None, "good"),
    CounterTrust.UNTRIED: ("none yet", "hook attached, nothing counted so far", ""),
    CounterTrust.BLIND: ("not counted", "this kernel never calls the hook", "warn"),
    CounterTrust.MISSING: ("not counted", "no hook attached", "warn"),
}


def _item(label: str, value: str, detail: str | None = None, style: str = "") -> str:
    more = f' <span class="dim">{visible(detail)}</span>' if detail else ""
    return f'<div><dt>{label}</dt><dd><b class="{style}">{visible(value)}</b>{more}</dd></div>\n'


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lay out rows of markup; each cell says its column, for narrow screens."""
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    yield f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    for first, *rest in rows:
        cells = zip(columns[1:], rest, strict=True)
        shown = "".join(f'<td data-of="{column}">{cell}</td>' for column, cell in cells)
        yield f'<tr><th scope="row">{first}</th>{shown}</tr>\n'
    yield "</tbody>\n</table>\n"


def _type(verdict: Verdict, *, fallback: bool | None = False) -> str:
    style = "bad" if fallback else _STYLES[verdict.type]
    need = ' <span class="bad">without need</span>' if fallback else ""
    return f'<b class="{style}">{verdict.type.value}</b>{need}'


def _verified(verdict: Verdict) -> str:
    if verdict.verified:
        return '<span class="good">verified</span>'
    if verdict.type is HypervisorType.UNKNOWN:
        return '<span class="dim">no proof</span>'
    return '<span class="warn">inferred</span>'


def _reasons(verdict: Verdict) -> str:
    return html.escape("; ".join(reason.value for reason in verdict.reasons))


def _rate(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
