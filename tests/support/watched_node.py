# SPDX-License-Identifier: Apache-2.0
"""A node as Prometheus sees it: asks for alerts and values, and waits for them.

Must not know how the agent is started, nor which guests there are.
"""

from collections.abc import Collection

import pytest

from probes.judge.cause import Cause
from tests.support.kernel_world import wait_for
from tests.support.queries import ask, run_query

DEADLINE_S = 60

Alerts = set[tuple[str, str]]
"""(alert, what it is about)."""


class WatchedNode:
    """What the Prometheus at an address knows of a node and of the test's own guests.

    The agent sees every QEMU of the machine, also those of others who test here at the same time.
    """

    def __init__(self, url: str, *, ours: Collection[str]) -> None:
        """ours: names of the node and of the guests that are looked at."""
        self.url = url
        self._ours = ours

    def firing(self) -> Alerts:
        """Every alert about what is ours that fires now."""
        firing = {
            (each["labels"]["alertname"], each["labels"].get("vm") or each["labels"].get("node"))
            for each in ask(self.url, "alerts")["alerts"]
            if each["state"] == "firing"
        }
        return {(alert, subject) for alert, subject in firing if subject in self._ours}

    def description(self, alert: str, vm: str) -> str:
        """Return the description of an alert about a VM, as Prometheus sends it now."""
        (text,) = (
            each["annotations"]["description"]
            for each in ask(self.url, "alerts")["alerts"]
            if (each["labels"]["alertname"], each["labels"].get("vm")) == (alert, vm)
        )
        assert isinstance(text, str)
        return text

    def cause(self, vm: str) -> Cause:
        """Return why a VM is emulated, which exactly one series says."""
        query = f'kubevirt_vmi_hypervisor_emulation_info{{name="{vm}"}} == 1'
        (found,) = run_query(self.url, query)
        return next(cause for cause in Cause if cause.value == found["metric"]["cause"])

    def types(self) -> dict[str, str]:
        """Hypervisor by name of each VM of ours."""
        found = run_query(self.url, "kubevirt_vmi_hypervisor_info")
        pairs = [(each["metric"]["name"], each["metric"]["hypervisor_type"]) for each in found]
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name: kind for name, kind in pairs if name in self._ours}

    def wait_until_firing(self, alerts: Alerts) -> None:
        """Wait until exactly these fire."""
        seen: Alerts = set()

        def as_wanted() -> bool:
            seen.clear()
            seen.update(self.firing())
            return seen == alerts

        try:
            wait_for(as_wanted, f"exactly {alerts} fires", DEADLINE_S)
        except AssertionError as error:
            pytest.fail(f"{error}; firing: {seen}")

    def value(self, expr: str) -> float | None:
        """The one value of a query now."""
        found = run_query(self.url, expr)
        return float(found[0]["value"][1]) if found else None

    def wait_for_value(self, expr: str, wanted: float) -> None:
        """Wait until a query has one value."""
        wait_for(lambda: self.value(expr) == wanted, f"{expr} is {wanted}", DEADLINE_S)

    def wait_for_scrapes(self, number: int) -> None:
        """Wait for that many further scrapes, a second apart; all of them must succeed."""
        newest = 'timestamp(up{job="hvprobe"})'
        begun = self.value(newest) or 0.0
        wait_for(lambda: (self.value(newest) or 0.0) >= begun + number, "scrapes go on", DEADLINE_S)
        assert self.value(f'min_over_time(up{{job="hvprobe"}}[{number}s])') == 1
