# SPDX-License-Identifier: Apache-2.0
"""The bearer token of a request: which header, which form, for which audience."""

import base64
import json

import pytest

from probes.serve.bearer import MalformedError, audiences, presented_by
from probes.serve.routes import Request
from probes.vmi.access import Presented


def jwt(claims: object) -> str:
    """A JSON web token with these claims. Nothing checks the other parts."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{body}.c2lnbmF0dXJl"


def request(**headers: str) -> Request:
    return Request(path="/metrics", **headers)  # type: ignore[arg-type] # only headers are given


def test_no_token() -> None:
    """A request without either header presents nothing."""
    assert presented_by(request()) is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_of_a_scraper(scheme: str) -> None:
    """The scheme's letters may be of any case; the token is made for the API server."""
    token = jwt({"aud": ["https://kubernetes.default.svc"]})
    found = presented_by(request(authorization=f"{scheme} {token}"))
    assert found == Presented(token=token, audience=None)


@pytest.mark.parametrize("audience", ["hvprobe", ["hvprobe"], ["other", "hvprobe"]])
def test_of_a_scraper_for_agents_only(audience: object) -> None:
    """A token that names the audience of agents is reviewed for that audience."""
    token = jwt({"aud": audience})
    found = presented_by(request(authorization=f"Bearer {token}"))
    assert found == Presented(token=token, audience="hvprobe")


def test_behind_the_pod_proxy() -> None:
    """A token in the header of our own must be made for agents, whatever it says of itself."""
    token = jwt({"aud": ["https://kubernetes.default.svc"]})
    found = presented_by(request(agent_token=token, authorization="Bearer another"))
    assert found == Presented(token=token, audience="hvprobe")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "token",
        "Bearer a b",
        "Bearer a,Bearer b",
        "Bearer tok\u00e9n",
        "Bearer a=b",
        "Bearer \x00",
    ],
)
def test_malformed_authorization(value: str) -> None:
    """Anything else than one bearer token is refused in one line that does not repeat it."""
    with pytest.raises(MalformedError) as caught:
        presented_by(request(authorization=value))
    assert len(str(caught.value).splitlines()) == 1
    assert "dXNlcjpwYXNz" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "Bearer a", "a,b", "a b"])
def test_malformed_agent_token(value: str) -> None:
    """The header of our own holds one token and no scheme."""
    with pytest.raises(MalformedError):
        presented_by(request(agent_token=value))


@pytest.mark.parametrize(
    "token",
    [
        "opaque",
        "a.b",
        "a.b.c.d",
        "a.!.c",
        "..",
        "a.bm90IGpzb24.c",
        jwt([]),
        jwt({}),
        jwt({"aud": 7}),
        jwt({"aud": {"hvprobe": 1}}),
        jwt({"aud": [["hvprobe"]]}),
        f"a.{base64.urlsafe_b64encode(b'[' * 9000).decode().rstrip('=')}.c",
    ],
)
def test_tokens_that_name_no_audience(token: str) -> None:
    """Whatever a client makes up as a token, no audience is read from it and nothing is raised."""
    assert audiences(token) == frozenset()


def test_a_token_is_in_no_text_of_its_request() -> None:
    """A request that is shown, in a log or a traceback, does not show its token."""
    shown = repr(request(authorization="Bearer secret", agent_token="hidden"))
    assert "secret" not in shown
    assert "hidden" not in shown
