# SPDX-License-Identifier: Apache-2.0
"""What the agent serves as JSON: the report, explanations, and the doctor's checks."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probes.report.json_schema import json_schema, why_schema
from probes.report.model import NodeReport
from probes.serve import examination, refresh
from probes.serve.endpoints import Endpoints
from probes.serve.examination import Examiner
from probes.serve.refresh import RefreshCache
from probes.serve.routes import Request, Response
from tests.support.facts import counted
from tests.support.rich_report import rich_report


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await steps()

    asyncio.run(limited())


async def ask(endpoints: Endpoints, path: str, route: str | None = None) -> Response:
    return await endpoints.routes[route or path](Request(path=path))


class Counting:
    """A node whose VMs exit ten times a second."""

    def __init__(self) -> None:
        self.refreshes = 0

    def refresh(self) -> NodeReport:
        self.refreshes += 1
        plain = rich_report()
        vmis = tuple(
            vmi._replace(counters=counted(exits=10 * self.refreshes))
            if vmi.vm.name == "alpha"
            else vmi
            for vmi in plain.vmis
        )
        return replace(plain, vmis=vmis, taken_unix_s=1000.0 + self.refreshes)


def test_the_report_with_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """/snapshot is the JSON of ``hvprobe snapshot`` with rates, also at the first request."""
    monkeypatch.setattr(refresh, "SHARED_FOR_S", 0.05)

    async def steps() -> None:
        answer = await ask(Endpoints(RefreshCache(Counting().refresh)), "/snapshot")
        assert (answer.status, answer.content_type) == (HTTPStatus.OK, "application/json")
        assert dict(answer.headers)["X-Content-Type-Options"] == "nosniff"
        found = json.loads(answer.body)
        Draft202012Validator(json_schema()).validate(found)
        rates = {vmi["name"]: vmi["vcpu_exits_per_second"] for vmi in found["vmis"]}
        assert rates["alpha"] == 10
        assert rates["zeta"] is None

    run(steps)


def test_an_old_report_is_not_served_as_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While refreshes fail, /snapshot is unavailable and says why."""
    monkeypatch.setattr(refresh, "SHARED_FOR_S", 0.01)
    reports = [rich_report(), rich_report()]

    async def steps() -> None:
        endpoints = Endpoints(RefreshCache(reports.pop))
        assert (await ask(endpoints, "/snapshot")).status is HTTPStatus.OK
        await asyncio.sleep(0.02)
        answer = await ask(endpoints, "/snapshot")
        assert answer.status is HTTPStatus.SERVICE_UNAVAILABLE
        assert b"the refresh failed" in answer.body

    run(steps)


def test_an_explanation() -> None:
    """/why/NAMESPACE/NAME is the JSON of ``hvprobe why``, with the sections that it prints."""

    async def steps() -> None:
        endpoints = Endpoints(RefreshCache(rich_report))
        answer = await ask(endpoints, "/why/default/beta", "/why/*")
        found = json.loads(answer.body)
        Draft202012Validator(why_schema()).validate(found)
        assert found["vmi"]["name"] == "beta"
        assert found["sections"][0]["lines"]
        for path, status in [
            ("/why/default/ghost", HTTPStatus.NOT_FOUND),
            ("/why/default", HTTPStatus.NOT_FOUND),
            ("/why/default%2Fbeta/x", HTTPStatus.NOT_FOUND),
        ]:
            assert (await ask(endpoints, path, "/why/*")).status is status

    run(steps)


def test_the_doctor_is_asked_once_for_many() -> None:
    """Requests share one examination for a while, and there is no path without one."""
    examined: list[str] = []

    def examine(report: NodeReport) -> dict[str, object]:
        examined.append(report.node)
        return {"schema": "hvprobe-doctor/v1", "checks": []}

    async def steps() -> None:
        assert "/doctor" not in Endpoints(RefreshCache(rich_report)).routes
        endpoints = Endpoints(RefreshCache(rich_report), examine=examine)
        answers = await asyncio.gather(*(ask(endpoints, "/doctor") for _ in range(20)))
        assert {answer.status for answer in answers} == {HTTPStatus.OK}
        found = json.loads(answers[0].body)
        assert (found["node"], found["version"]) == ("node-1", "0.1.0")
        assert examined == ["node-1"]

    run(steps)


def test_an_examination_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It delays requests by the deadline, no second one starts, and its result is used."""
    monkeypatch.setattr(examination, "EXAMINATION_DEADLINE_S", 0.1)
    monkeypatch.setattr(examination, "KEPT_FOR_S", 0.0)
    gate = threading.Event()
    begun: list[NodeReport] = []

    def examine(report: NodeReport) -> dict[str, object]:
        begun.append(report)
        assert gate.wait(20)
        return {"n": len(begun)}

    async def steps() -> None:
        examiner = Examiner(examine)
        assert await examiner.examined(rich_report()) is None
        assert await examiner.examined(rich_report()) is None
        assert len(begun) == 1
        gate.set()
        while (found := await examiner.examined(rich_report())) is None:
            await asyncio.sleep(0.01)
        assert found["n"] in (1, 2)

    run(steps)


def test_an_examination_that_fails() -> None:
    """Its request fails, which the server answers with 500, and a later one tries again."""

    def examine(_: NodeReport) -> dict[str, object]:
        raise ValueError("a defect")

    async def steps() -> None:
        with pytest.raises(ValueError, match="a defect"):
            await Examiner(examine).examined(rich_report())

    run(steps)
