# SPDX-License-Identifier: Apache-2.0
"""The page at ``/`` for a NodeReport: what it shows, and that no text in it is executed."""

import base64
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from ebpf.hooks import KVM_EXIT
from probes.host.node import Cause as ProblemCause
from probes.host.node import Problem
from probes.host.process import VmmId
from probes.judge.cause import Cause, CauseFound
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict
from probes.render.page import page
from probes.render.page_frame import CONTENT_SECURITY_POLICY, is_refreshing
from probes.render.page_templates import MAX_NAME_CHARS, STYLE, filled
from probes.render.page_trouble import troubles
from probes.report.model import CounterTrust, NodeReport
from probes.vmi.attribution import VmName
from probes.vmi.model import WatchStatus
from tests.support.facts import VMM, counted, hooks, trusts
from tests.support.live_reports import LIAR
from tests.support.page_reader import Read
from tests.support.rich_report import ALLOWED, KVM, TCG, process, rich_report, vmi, well_report

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "page.html"
DASH = "\N{EN DASH}"
VM_PAGE = re.compile(r"vmi/[a-z0-9-]+/[a-z0-9.-]+")
"""Address of a VM's page, which can be nothing else."""
OFF = "?refresh=off"
REFRESHING = ("meta", {"http-equiv": "refresh", "content": "10"})


def drawn(
    report: NodeReport | None,
    *,
    previous: NodeReport | None = None,
    failure: str | None = None,
    refreshing: bool = True,
) -> str:
    return page(
        report, previous=previous, failure=failure, last_known_s=60, refreshing=refreshing
    ).decode()


def earlier(
    report: NodeReport, seconds: float, **exits: tuple[int | None, int | None]
) -> NodeReport:
    """An earlier report, with earlier (returns to user space, all exits) of the named VMs."""
    vmis = tuple(
        vmi._replace(
            counters=counted(userspace_exits=exits[vmi.vm.name][0], exits=exits[vmi.vm.name][1]),
        )
        if vmi.vm.name in exits
        else vmi
        for vmi in report.vmis
    )
    return replace(report, taken_unix_s=report.taken_unix_s - seconds, vmis=vmis)


def test_golden() -> None:
    """The complete page of a report that has an example of each case equals the stored page.

    After an intended change run the tests with HVPROBE_UPDATE_GOLDEN=1 and read the new page.
    """
    text = drawn(rich_report(), previous=earlier(rich_report(), 30, alpha=(1, 11)))
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_page_is_self_contained() -> None:
    """The page has no script, no event handler, no style attribute and no foreign address."""
    read = Read(drawn(rich_report(), failure="it failed"))
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "img", "iframe", "object"})
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("href", "src", "action"):
            address = attributes.get(name)
            known = (None, "data:,", "metrics", "readyz", OFF)
            assert address in known or VM_PAGE.fullmatch(address)
    assert "url(" not in read.style
    assert "@import" not in read.style


def test_each_vm_links_to_its_page() -> None:
    """The address is relative and holds the name; a name that no VMI can have gets none."""
    names = (VmName(namespace="lab", name="web.a-1"), VmName(namespace="..", name="%2e"))
    vmis = tuple(vmi("x", KVM)._replace(vm=name) for name in names)
    read = Read(drawn(replace(rich_report(), vmis=vmis)))
    links = [given.get("href") for tag, given in read.elements if tag == "a"]
    assert sorted(links, key=str) == [OFF, None, "metrics", "readyz", "vmi/lab/web.a-1"]


def test_the_policy_allows_the_style_and_nothing_else() -> None:
    """The policy allows the page's own style element, by its hash, and ``data:`` images."""
    style = Read(drawn(rich_report())).style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in CONTENT_SECURITY_POLICY.split(";"))
    assert directives == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_page_refreshes_itself_until_it_is_told_not_to() -> None:
    """A link stops it. On the page without refreshing a link starts it, and all links keep it."""
    refreshing = Read(drawn(rich_report()))
    assert REFRESHING in refreshing.elements
    assert "This page refreshes every 10 s. Stop refreshing" in refreshing.text
    still = Read(drawn(rich_report(), refreshing=False))
    assert "refresh" not in {given.get("http-equiv") for _, given in still.elements}
    assert "This page does not refresh itself. Refresh every 10 s" in still.text
    links = [str(given["href"]) for tag, given in still.elements if tag == "a"]
    assert links[0] == "./"
    assert {link for link in links if link.endswith(OFF)} == {
        f"vmi/default/{each.vm.name}{OFF}" for each in rich_report().vmis
    }


@pytest.mark.parametrize(
    ("query", "refreshing"),
    [
        ("", True),
        ("refresh=off", False),
        ("a=b&refresh=off", False),
        ("refresh=%6fff", False),
        ("refresh=off&refresh=on", True),
        ("refresh=on", True),
        ("refresh", True),
        ("refresh=0;url=//elsewhere.invalid", True),
        ("%ff%00" * 1000, True),
        ("&" * 10_000, True),
    ],
)
def test_a_query_only_switches_refreshing(query: str, refreshing: bool) -> None:
    """Any other query is ignored."""
    assert is_refreshing(query) is refreshing


def test_trouble_is_on_top() -> None:
    """What needs attention comes first, the most urgent VMs before the rest, with its remedy."""
    plain = rich_report()
    read = Read(drawn(replace(plain, vmis=(*plain.vmis, vmi("liar", LIAR)))))
    top, _, below = read.text.partition("Virtual machines")
    in_order = (
        "Needs attention",
        "contradiction: default/liar",
        f"cause: {Reason.CONTRADICTS_COMMAND_LINE.sentence}",
        f"remedy: {Reason.CONTRADICTS_COMMAND_LINE.remedy}",
        "fallback: default/beta",
        f"cause: {ALLOWED.sentence}",
        f"remedy: {ALLOWED.cause.remedy}",
        "unknown: default/zeta",
        "hooks not attached",
        "kvm_vcpu_ioctl: kvm_vcpu_ioctl is not here",
        f"remedy: {Reason.HOOKS_MISSING.remedy}",
        "events lost",
        "remedy: raise --ledger-capacity",
        "missed runs",
        "7 VMs",
    )
    places = [top.find(words) for words in in_order]
    assert -1 not in places
    assert places == sorted(places)
    assert "Needs attention" not in below
    assert "default/gamma" not in top  # it is only not verified


def test_a_node_without_trouble() -> None:
    """The page says so, and shows no list of troubles."""
    read = Read(drawn(well_report()))
    assert "Nothing needs attention." in read.text
    assert "Needs attention" not in read.text
    assert "Needs attention" not in Read(drawn(None, failure="it failed")).text


def test_vms_in_the_same_trouble_are_listed_once() -> None:
    """VMs with one cause are one trouble, which names ten of them and no process of one."""
    causes = [CauseFound(cause=Cause.EMULATION_ALLOWED, detail=f"by {n}") for n in range(30)]
    vmis = tuple(
        vmi(f"vm-{n:02}", TCG, fallback=True, cause=cause) for n, cause in enumerate(causes)
    )
    found = [*troubles(replace(well_report(), vmis=vmis))]
    assert [(each.label, each.cause, each.left_out) for each in found] == [
        ("fallback", Cause.EMULATION_ALLOWED.phrase, 20)
    ]
    assert [subject.name for subject in found[0].subjects] == [
        f"default/vm-{n:02}" for n in range(10)
    ]
    assert "default/vm-09 and 20 more" in Read(drawn(replace(well_report(), vmis=vmis))).text


def test_what_the_agent_cannot_observe_is_trouble() -> None:
    """Accelerators, /proc, names and the kernel table are on top when they fail."""
    plain = well_report()
    problem = Problem(cause=ProblemCause.DEVICE_ABSENT, detail="no /dev/kvm", remedy="load kvm")
    broken = replace(
        plain,
        accelerators=(
            replace(plain.accelerators[0], available=False, problem=problem),
            rich_report().accelerators[1],
        ),
        proc_readable=False,
        health=replace(
            plain.health,
            ledger_error="no bcc",
            vmi_watch=WatchStatus(
                up=False,
                synced=False,
                last_sync_unix_s=None,
                restarts=0,
                malformed_total=0,
                error="refused",
            ),
        ),
    )
    assert [(each.label, each.cause, each.remedy) for each in troubles(broken)] == [
        ("kvm not usable on this node", "no /dev/kvm", "load kvm"),
        ("mshv not usable on this node", "/dev/mshv: not here", None),
        ("no processes", "/proc of the node is not readable", "give the host's with --proc"),
        ("VMI names unknown", "refused", None),
        ("no kernel table", "no bcc", Reason.HOOKS_MISSING.remedy),
    ]


def test_hooks_are_folded_while_all_is_well_report() -> None:
    """The table opens by itself for a broken hook or for skipped runs, which come first in it."""
    folded = Read(drawn(well_report()))
    assert ("details", {}) in folded.elements
    assert "10 of 10 hooks attached" in folded.text
    read = Read(drawn(rich_report()))
    assert ("details", {"open": None}) in read.elements
    assert "8 of 10 hooks attached, 1 with skipped runs" in read.text
    at = next(place for place, row in enumerate(read.rows) if row[0] == "Hook")
    names = [row[0] for row in read.rows[at + 1 :]]
    assert names[:4] == [
        "kvm_vcpu_ioctl",
        "sched_process_free",
        "kvm_userspace_exit",
        "kvm_dev_ioctl",
    ]
    idle = tuple(
        status.not_needed() if status.is_of(KVM_EXIT) else status
        for status in well_report().health.hooks
    )
    inactive = Read(drawn(replace(well_report(), health=replace(well_report().health, hooks=idle))))
    assert ("details", {}) in inactive.elements
    assert "9 of 9 hooks attached, 1 inactive" in inactive.text
    assert inactive.rows[-1][0] == "kvm_exit"


def test_a_screen_reader_finds_its_way() -> None:
    """The page has a language, landmarks, headings in order, and names for tables and sections."""
    read = Read(drawn(rich_report(), failure="it failed"))
    tags = [tag for tag, _ in read.elements]
    assert read.elements[0] == ("html", {"lang": "en"})
    for landmark in ("header", "main", "footer", "nav", "h1"):
        assert tags.count(landmark) == 1
    assert [tag for tag in tags if tag in ("h1", "h2", "h3")] == ["h1", "h2", "h2", "h2", "h2"]
    ids = [given["id"] for tag, given in read.elements if tag == "h2"]
    sections = [given["aria-labelledby"] for tag, given in read.elements if tag == "section"]
    assert sections == ids
    assert tags.count("table") == tags.count("caption") == 3
    for tag, attributes in read.elements:
        if tag in ROLES:
            assert attributes["role"] in ROLES[tag]
            assert tag != "th" or attributes["scope"] in ("col", "row")


ROLES = {
    "table": ("table",),
    "thead": ("rowgroup",),
    "tbody": ("rowgroup",),
    "tr": ("row",),
    "th": ("columnheader", "rowheader"),
    "td": ("cell",),
}
"""The roles of a table's elements, which some browsers forget where they are shown as cards."""


def test_an_emulated_vm_has_its_cause() -> None:
    """Below its reasons it has cause and remedy, in which no markup acts."""
    read = Read(drawn(rich_report()))
    reasons = read.row("default/beta")[-1]
    assert f"cause: {ALLOWED.sentence}" in reasons
    assert f"remedy: {ALLOWED.cause.remedy}" in reasons
    assert "QEMU's program is <b>, which" in read.row("default/epsilon")[-1]
    assert "remedy" not in read.row("default/alpha")[-1]


def test_a_vm_has_type_certainty_and_rates() -> None:
    """A rate is the difference between two refreshes divided by the time between them."""
    now = rich_report()
    read = Read(drawn(now, previous=earlier(now, 20, alpha=(0, 1), delta=(0, None))))
    assert read.row("default/alpha")[1:5] == ["kvm", "verified", "2.0", "0.1"]
    assert read.row("default/beta")[1:5] == ["tcg fallback", "verified", DASH, DASH]
    assert read.row("default/delta")[1:5] == ["mshv", "verified", DASH, "0.0"]
    assert read.row("default/epsilon")[1:3] == ["tcg", "verified"]
    assert read.row("default/gamma")[1:5] == ["kvm", "inferred", "0.0", "0.0"]
    assert read.row("default/zeta")[1:5] == ["unknown", "no proof", DASH, DASH]
    assert "Rates are over 20 s." in read.text


@pytest.mark.parametrize(
    "previous",
    [
        None,
        pytest.param(earlier(rich_report(), 0), id="the same moment"),
        pytest.param(earlier(rich_report(), -5), id="the clock was set back"),
        pytest.param(earlier(rich_report(), 20, alpha=(9, 99)), id="counters went down"),
        pytest.param(earlier(rich_report(), 20, alpha=(None, None)), id="not counted before"),
        pytest.param(
            replace(
                earlier(rich_report(), 20),
                vmis=(vmi("alpha", KVM, vmm=VmmId(tgid=1, start_ticks=1), exits=(0, 0)),),
            ),
            id="another process",
        ),
        pytest.param(replace(earlier(rich_report(), 20), vmis=()), id="not there before"),
    ],
)
def test_no_rate_where_none_is_known(previous: NodeReport | None) -> None:
    """The page shows a dash where no rate is known, never a false 0 or a negative rate."""
    assert Read(drawn(rich_report(), previous=previous)).row("default/alpha")[3:5] == [DASH, DASH]


def test_urgent_vms_come_first() -> None:
    """The order is contradictions, fallbacks, unknown, not verified, then the rest by name."""
    plain = rich_report()
    read = Read(drawn(replace(plain, vmis=(*plain.vmis, vmi("liar", LIAR)))))
    names = [row[0] for row in read.rows if row and row[0].startswith("default/")]
    assert names == [
        f"default/{name}" for name in ("liar", "beta", "zeta", "gamma", "alpha", "delta", "epsilon")
    ]
    assert read.row("default/liar")[1] == "kvm contradiction"


def test_health_is_shown() -> None:
    """The page shows accelerators, the kernel table, errors and each hook with its reason."""
    read = Read(drawn(rich_report()))
    assert read.row("kvm_vcpu_ioctl")[1] == "none"
    assert read.row("kvm_vcpu_ioctl")[3] == "kvm_vcpu_ioctl is not here"
    assert read.row("kvm_exit")[1] == "raw_tracepoint"
    for text in (
        "3 of 4096",
        "17 events dropped",
        "what these hooks count is too low: kvm_userspace_exit 4",
        "/dev/mshv: not here",
        "this kernel never fires kvm_exit",
    ):
        assert text in read.text


def test_an_inactive_hook_is_not_marked_as_broken() -> None:
    """A hook that nothing needs is shown with its reason, and without the emphasis of a fault."""
    plain = rich_report()
    idle = tuple(
        status.not_needed() if status.is_of(KVM_EXIT) else status for status in plain.health.hooks
    )
    trusted = trusts(exits=CounterTrust.INACTIVE)
    text = drawn(replace(plain, health=replace(plain.health, hooks=idle, trusts=trusted)))
    row = Read(text).row("kvm_exit")
    assert (row[1], row[3]) == ("inactive", f"not needed: {KVM_EXIT.on_demand}")
    assert ">inactive</td>" in text
    assert "kvm_exit is detached (not needed: KVM's own statistics" in Read(text).text


def test_missed_runs_are_shown() -> None:
    """Without a loss the page says so. Without a ledger it says nothing about missed runs."""
    plain = rich_report()
    whole = replace(plain, health=replace(plain.health, hooks=hooks()))
    assert "the kernel skipped no run" in Read(drawn(whole)).text
    without = replace(plain, health=replace(plain.health, ledger_error="no bcc"))
    assert "missed runs" not in Read(drawn(without)).text


def test_processes_without_a_vm_are_shown() -> None:
    """The page lists libvirt's probe and a process without a name, but no process of a VM."""
    read = Read(drawn(rich_report()))
    assert read.row("qemu-system-x86 90")[4] == "capability probe"
    assert read.row("qemu-system-x86 4900")[4] == "no VM of this name"
    assert not [row for row in read.rows if row[0] == f"qemu-system-x86 {VMM.tgid}"]


def test_a_node_without_vms() -> None:
    """The page says that there is no VM, and shows no empty table."""
    read = Read(drawn(replace(rich_report(), vmis=(), processes=())))
    assert "No VM with a name runs on this node." in read.text
    assert "Exits/s" not in read.text
    assert "VMM processes without a VM" not in read.text


def test_a_thousand_vms() -> None:
    """Each VM has a row, and the page is below half a megabyte before compression."""
    vmis = tuple(
        vmi(f"vm-{number:04}", KVM, exits=(1, 2), source=ExitSource.KVM_STATISTICS)
        for number in range(1000)
    )
    text = drawn(replace(rich_report(), vmis=vmis))
    assert sum(row[0].startswith("default/vm-") for row in Read(text).rows) == 1000
    assert len(text) < 500_000


def luminance(colour: str) -> float:
    """The relative luminance, as WCAG 2 defines it, of ``#rgb`` or ``#rrggbb``."""
    digits = colour.removeprefix("#")
    pairs = [digit * 2 for digit in digits] if len(digits) == 3 else re.findall("..", digits)
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(pair, 16) / 255 for pair in pairs)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(scheme: int) -> None:
    """Every text colour has the contrast of WCAG 2 AA, 4.5 to 1, on both backgrounds."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+);", blocks[scheme]))
    for text in ("ink", "dim", "good", "warn", "bad"):
        for background in ("paper", "card"):
            both = sorted((luminance(colours[text]), luminance(colours[background])))
            assert (both[1] + 0.05) / (both[0] + 0.05) >= 4.5, (text, background)


def test_a_failed_refresh_is_shown_first() -> None:
    """The page begins with the failure. Without any report it has no rows."""
    assert '</header>\n<main>\n<p class="alarm"' in drawn(rich_report(), failure="it <failed>")
    assert "it <failed>." in Read(drawn(rich_report(), failure="it <failed>")).text
    nothing = Read(drawn(None, failure="it failed"))
    assert "There is no data yet." in nothing.text
    assert nothing.rows == []


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></td></table><h1>owned",
    "&lt;b&gt;",
    "a\x00b\x1b[31mred\r\nX-Header: 1",
    "\u202egnp.exe\u2066\u2069\u200b\u2028",
    "lone \ud800 surrogate",
    "\U000e0041\ufeff",
    "x" * 100_000,
    "مرحبا שלום",
]


def hostile_reports(text: str) -> Iterator[NodeReport]:
    plain = rich_report()
    name = VmName(namespace=text, name=text)
    yield replace(plain, node=text, kernel=text, machine=text, version=text)
    yield replace(plain, vmis=(vmi("x", TCG)._replace(vm=name),))
    unnamed: Verdict = KVM
    yield replace(
        plain, processes=(process(7, unnamed)._replace(guest_name=text, comm=text, vm=None),)
    )
    yield replace(plain, health=replace(plain.health, ledger_error=text))
    problem = Problem(cause=ProblemCause.TRIAL_FAILED, detail=text, remedy=text)
    yield replace(plain, accelerators=(replace(plain.accelerators[1], problem=problem),))


def elements(read: Read) -> list[tuple[str, dict[str, str | None]]]:
    """The page's elements, without the addresses of VMs, which a VM with a false name lacks."""
    return [
        (tag, {name: value for name, value in given.items() if not VM_PAGE.fullmatch(value or "")})
        for tag, given in read.elements
    ]


def active_characters(text: str) -> list[str]:
    """Invisible characters that change others: control, format, separators and surrogates."""
    return [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(text: str) -> None:
    """A hostile text adds no element to the page, and its invisible characters become visible."""
    for hostile, harmless in zip(hostile_reports(text), hostile_reports("x"), strict=True):
        shown = drawn(hostile)
        read = Read(shown)
        assert elements(read) == elements(Read(drawn(harmless)))
        assert active_characters(shown.replace("\n", "")) == []
        assert len(shown) < len(drawn(harmless)) + 5 * 10 * MAX_NAME_CHARS


def test_bidirectional_text_is_isolated() -> None:
    """A name in a right-to-left script does not reverse the text beside it."""
    shown = drawn(replace(rich_report(), vmis=(vmi("שלום", KVM),)))
    assert "<bdi>שלום</bdi>" in shown


@given(st.text())
def test_any_text_is_text(text: str) -> None:
    """With any name the page parses to the same elements and can be encoded."""
    named = VmName(namespace="default", name=text)
    shown = drawn(replace(rich_report(), vmis=(vmi("x", KVM)._replace(vm=named),)))
    harmless = drawn(replace(rich_report(), vmis=(vmi("x", KVM),)))
    assert elements(Read(shown)) == elements(Read(harmless))
    assert re.search(r"[\x00-\x09\x0b-\x1f]", shown) is None


def test_a_template_cannot_print_what_is_missing() -> None:
    """A value that is not there is an error, not an empty place on the page."""
    with pytest.raises(UndefinedError):
        filled("page.html", {})
