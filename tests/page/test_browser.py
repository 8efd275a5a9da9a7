# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: the real server serves it, and the browser reports its errors."""

import collections
import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probes.render import page_frame
from probes.render.page_frame import CONTENT_SECURITY_POLICY
from probes.report.model import NodeReport, ProcessState
from probes.serve import refresh
from probes.serve.endpoints import Endpoints
from probes.serve.refresh import RefreshCache
from probes.serve.routes import Request, Response
from probes.vmi.attribution import VmName
from tests.support.browser import Browser, missing_programs
from tests.support.kernel_world import wait_for
from tests.support.required import require
from tests.support.rich_report import KVM, TCG, process, rich_report, vmi, well_report
from tests.support.serving import Serving
from tests.support.why_reports import cluster_node

HOSTILE = (
    "<img src=//elsewhere.invalid/a.png onerror=alert(1)><script>document.title='owned'</script>"
    "\u202egnp.\x00\x1b[31m\u2066"
)
ZALGO = "z" + "\u0335\u0321\u0301" * 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    missing = missing_programs()
    require("prometheus", f"not installed: {', '.join(missing)}" if missing else None)
    folder = tmp_path_factory.mktemp("browser")
    with Browser(folder) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


def empty() -> NodeReport:
    return replace(rich_report(), vmis=(), processes=())


def hostile() -> NodeReport:
    names = [VmName(namespace=text, name=text) for text in (HOSTILE, ZALGO, "W" * 400, "שלום")]
    unnamed = process(4900, TCG, state=ProcessState.UNATTRIBUTED)
    return replace(
        rich_report(),
        node=HOSTILE,
        kernel=HOSTILE,
        vmis=tuple(vmi("x", KVM, exits=(1, 2))._replace(vm=name) for name in names),
        processes=(unnamed._replace(guest_name=HOSTILE, comm=HOSTILE),),
    )


def thousand() -> NodeReport:
    vmis = tuple(
        vmi(f"virtual-machine-{number:04}", TCG if number % 50 == 0 else KVM, exits=(number, 7))
        for number in range(1000)
    )
    return replace(rich_report(), vmis=vmis)


def failing() -> NodeReport:
    raise RuntimeError("a defect")


REPORTS: dict[str, Callable[[], NodeReport]] = {
    "rich": rich_report,
    "empty": empty,
    "hostile": hostile,
    "thousand": thousand,
    "failing": failing,
}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
@pytest.mark.parametrize("name", REPORTS)
def test_the_page_in_a_browser(
    browser: Browser, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    """The page logs nothing, requests nothing else, fits its width, and runs no hostile markup.

    With HVPROBE_SCREENSHOTS=DIR the screenshots are kept in that folder.
    """
    browser.console()
    browser.requests()
    browser.emulate(width=width, dark=dark)
    with Serving(Endpoints(RefreshCache(REPORTS[name])).routes) as serving:
        url = f"http://127.0.0.1:{serving.port}/"
        browser.open(url)
        assert browser.console() == []
        requested = [address for address in browser.requests() if not address.startswith("data:")]
        assert requested == [url]
        shots = Path(os.environ.get("HVPROBE_SCREENSHOTS") or tmp_path)
        if name != "thousand":
            browser.screenshot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(overflow) == 0
    assert browser.evaluate("document.title").endswith(" \N{EN DASH} hvprobe")
    # The style applies: the policy permits it, and it follows the colour scheme.
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(246, 247, 249)")
    assert browser.evaluate("document.querySelectorAll('script, img').length") == 0
    if name == "thousand":
        rows = browser.evaluate(
            "document.querySelectorAll('section[aria-labelledby=vms] tbody tr').length"
        )
        assert rows == 1000


@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
def test_the_page_of_a_vm_in_a_browser(browser: Browser, width: int) -> None:
    """A VM's link on the page leads to its page, which fits its width, and that leads back."""
    browser.emulate(width=width, dark=False)
    with Serving(Endpoints(RefreshCache(cluster_node)).routes) as serving:
        root = f"http://127.0.0.1:{serving.port}/"
        browser.open(root)
        link = browser.evaluate("document.querySelector('tbody th a').href")
        assert link == f"{root}vmi/default/beta"
        browser.console()
        browser.open(link)
        assert browser.console() == []
        assert browser.evaluate("document.title") == "default/beta \N{EN DASH} hvprobe"
        assert browser.evaluate("document.querySelector('footer a').href") == root
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(overflow) == 0


class Busy:
    """A node whose VMs exit ten times a second."""

    def __init__(self, report: NodeReport) -> None:
        self._report = report
        self.refreshes = 0

    def refresh(self) -> NodeReport:
        self.refreshes += 1
        now_s = time.time()
        vmis = tuple(
            each._replace(counters={name: int(now_s * 10) for name in each.counters})
            for each in self._report.vmis
        )
        return replace(self._report, vmis=vmis, taken_unix_s=now_s)


def test_the_first_load_shows_rates(browser: Browser) -> None:
    """The first request to an agent that has just started is answered with rates."""
    browser.emulate(width=1280, dark=False)
    with Serving(Endpoints(RefreshCache(Busy(well_report()).refresh)).routes) as serving:
        browser.open(f"http://127.0.0.1:{serving.port}/")
    cell = browser.evaluate("document.querySelector('td[data-of=\"Exits/s\"]').innerText")
    assert 9 <= float(cell) <= 11
    assert "Rates are over 1 s." in browser.evaluate("document.body.innerText")


def test_the_page_refreshes_itself_until_a_link_stops_it(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser loads the page again without a script; after the link it does not."""
    monkeypatch.setattr(page_frame, "REFRESH_EVERY_S", 1)
    queries: list[str] = []
    routes = Endpoints(RefreshCache(well_report)).routes

    async def page(request: Request) -> Response:
        queries.append(request.query)
        return await routes["/"](request)

    def click(selector: str) -> None:
        browser.evaluate(f"(document.querySelector('{selector}').click(), 0)")

    with Serving({**routes, "/": page}) as serving:
        url = f"http://127.0.0.1:{serving.port}/"
        browser.open(url)
        wait_for(lambda: len(queries) >= 3, "the page is loaded again")
        click("header a")
        wait_for(lambda: queries[-1] == "refresh=off", "the link is followed")
        wait_for(lambda: browser.evaluate("document.readyState") == "complete", "it is loaded")
        loaded = len(queries)
        time.sleep(2.5)
        assert len(queries) == loaded
        assert browser.evaluate("document.querySelector('tbody a').search") == "?refresh=off"
        click("header a")
        wait_for(lambda: queries[loaded:].count("") >= 2, "the page refreshes itself again")
        assert browser.evaluate("document.location.href") == url
        browser.open("about:blank")


@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
def test_trouble_is_seen_first(browser: Browser, width: int) -> None:
    """Trouble is at the top of the first screen; hooks are folded while they are well."""
    browser.emulate(width=width, dark=False)
    for report, troubled in ((rich_report, True), (well_report, False)):
        with Serving(Endpoints(RefreshCache(report)).routes) as serving:
            browser.open(f"http://127.0.0.1:{serving.port}/")
        assert browser.evaluate("document.querySelector('details').open") is troubled
        seen = browser.evaluate("document.querySelector('details table').checkVisibility()")
        assert seen is troubled
        top = "document.querySelector('.trouble li')?.getBoundingClientRect().top ?? null"
        found = browser.evaluate(top)
        assert (found is not None) is troubled
        assert found is None or 0 < found < 300


ACCESSIBLE = {
    "banner": 1,
    "main": 1,
    "contentinfo": 1,
    "navigation": 1,
    "alert": 1,
    "table": 3,
    "region": 4,
}
"""The landmarks of the page with everything, and how many there are."""


@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
def test_what_a_screen_reader_gets(browser: Browser, width: int) -> None:
    """Landmarks, headings and tables reach it, also where tables are shown as cards."""
    browser.emulate(width=width, dark=False)
    report = rich_report()
    left = [report, report]
    with Serving(Endpoints(RefreshCache(left.pop)).routes) as serving:
        url = f"http://127.0.0.1:{serving.port}/"
        browser.open(url)
        time.sleep(refresh.SHARED_FOR_S)
        browser.open(url)  # now the refresh fails, so there is an alert
    nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", ""), node)
        for node in browser.devtools("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"]
    ]
    roles = collections.Counter(role for role, _, _ in nodes)
    assert {role: roles[role] for role in ACCESSIBLE} == ACCESSIBLE
    named = [name for role, name, _ in nodes if role in ("table", "region", "navigation", "list")]
    assert "" not in named
    assert "VMs of this node, the most urgent first" in named
    headings = [
        next(each["value"]["value"] for each in node["properties"] if each["name"] == "level")
        for role, _, node in nodes
        if role == "heading"
    ]
    assert headings == [1, 2, 2, 2, 2]
    assert roles["row"] == 3 + len(report.vmis) + 2 + len(report.health.hooks)
    assert roles["rowheader"] == len(report.vmis) + 2 + len(report.health.hooks)
    assert roles["columnheader"] == 6 + 6 + 4
    assert roles["cell"] >= 5 * len(report.vmis)


CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3)
      .map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const ratios = [...document.querySelectorAll("body *")]
    .filter((element) => [...element.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .map((element) => [luminance(getComputedStyle(element).color), luminance(ground(element))])
    .map(([one, other]) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
  return [ratios.length, Math.min(...ratios)];
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_can_be_read(browser: Browser, dark: bool) -> None:
    """All text as drawn has the contrast of WCAG 2 AA, 4.5 to 1, on what is behind it."""
    browser.emulate(width=1280, dark=dark)
    with Serving(Endpoints(RefreshCache(rich_report)).routes) as serving:
        for path in ("", "vmi/default/beta"):
            browser.open(f"http://127.0.0.1:{serving.port}/{path}")
            texts, least = browser.evaluate(CONTRAST)
            assert texts > 15
            assert least >= 4.5


def test_the_policy_holds_in_the_browser(browser: Browser) -> None:
    """If markup got into the page, the policy would keep it from running or loading anything."""
    requested: list[str] = []
    routes = Endpoints(RefreshCache(rich_report)).routes

    async def metrics(request: Request) -> Response:
        requested.append(request.path)
        return await routes["/metrics"](request)

    with Serving({**routes, "/metrics": metrics}) as serving:
        browser.open(f"http://127.0.0.1:{serving.port}/")
        browser.console()
        browser.evaluate(
            "(document.body.insertAdjacentHTML('beforeend', "
            '\'<img src="/metrics"><p style="color:red" onclick="1">x</p>\'), 0)'
        )
        browser.evaluate(
            "(document.head.appendChild(Object.assign(document.createElement('script'), "
            "{text: 'document.title = 1'})), 0)"
        )
        refused = browser.console()
        assert browser.evaluate("document.title") == "node-1 \N{EN DASH} hvprobe"
        assert requested == []
    for directive in ("img-src", "style-src", "script-src"):
        assert [line for line in refused if directive in line], directive


def test_the_page_is_compressed_and_has_a_head() -> None:
    """The compressed page of a thousand VMs takes less than 40 kB. HEAD has the same headers."""
    with Serving(Endpoints(RefreshCache(thousand)).routes) as serving:
        client = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
        client.request("GET", "/", headers={"Accept-Encoding": "gzip"})
        answer = client.getresponse()
        body = answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert len(body) < 40_000
        client.request("HEAD", "/")
        head = client.getresponse()
        assert (head.status, head.read()) == (200, b"")
        assert head.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        client.close()
