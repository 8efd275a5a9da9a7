# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven by chromedriver over plain WebDriver HTTP.

Owns both processes. They end with the test, even if it is killed: chromedriver by PR_SET_PDEATHSIG,
Chromium when chromedriver's pipe to it closes. Must not know which page is opened.
"""

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.kernel_world import DEADLINE_S, Started

PROGRAMS = ("chromium", "chromedriver")

_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "hide-scrollbars",
    "remote-debugging-pipe",
)


def missing_programs() -> list[str]:
    """The programs that the browser needs and this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Browser(Started):
    """One browser with one window. Its profile is in the given folder, which must be empty."""

    def __init__(self, folder: Path) -> None:
        super().__init__(["chromedriver", "--port=0"], stderr=subprocess.DEVNULL)
        self._folder = folder
        self._url = ""
        started = re.compile(r"started successfully on port (\d+)")
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            found = started.search(line)
            if found:
                self._url = f"http://127.0.0.1:{found[1]}/session"
                break
        assert self._url, "chromedriver ended before it listened"
        session = self._ask("POST", "", {"capabilities": self._capabilities()})
        self._url += "/" + session["sessionId"]
        self.open("about:blank")  # the browser's own start page makes many requests

    def _capabilities(self) -> dict[str, Any]:
        arguments = [f"--{flag}" for flag in _FLAGS]
        arguments.append(f"--user-data-dir={self._folder / 'profile'}")
        return {
            "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": {
                    "args": arguments,
                    "binary": shutil.which("chromium"),
                },
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
        }

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return json.load(answer)["value"]

    def __exit__(self, *_: object) -> None:
        self._ask("DELETE", "")
        self.kill()

    def __enter__(self) -> Self:
        return self

    def devtools(self, command: str, **parameters: Any) -> Any:  # noqa: ANN401 - JSON
        """Run one command of the Chrome DevTools Protocol and return its result."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def emulate(self, *, width: int, dark: bool, height: int = 800) -> None:
        """Emulate a screen of this size in pixels, and a user's choice of dark or light mode."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page and everything that it requests."""
        self._ask("POST", "/url", {"url": url})

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """The value of a JavaScript expression on the page."""
        return self._ask("POST", "/execute/sync", {"script": f"return {expression}", "args": []})

    def console(self) -> list[str]:
        """What the page logged, or the browser logged about it, since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def requests(self) -> list[str]:
        """The addresses requested since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, *, complete: bool = True) -> None:
        """Write a PNG of the complete page, or of what the screen shows of it."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=complete)
        path.write_bytes(base64.b64decode(shot["data"]))
