# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: the real server serves it, and the browser reports its errors."""

import http.client
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probes.render.page_frame import CONTENT_SECURITY_POLICY
from probes.report.model import NodeReport, ProcessState
from probes.serve.endpoints import Endpoints
from probes.serve.http.routes import Request, Response
from probes.serve.refresh import RefreshCache
from probes.vmi.attribution import VmName
from tests.support.browser import Browser, missing_programs
from tests.support.required import require
from tests.support.rich_report import KVM, TCG, process, rich_report, vmi
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
            "document.querySelectorAll('section:first-of-type tbody tr').length"
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
