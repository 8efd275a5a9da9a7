# SPDX-License-Identifier: Apache-2.0
"""The form of the two reviews in the Kubernetes API, and what the server's answers mean."""

import json

import pytest

from probes.vmi.access import Presented, ReviewError, User
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.review_api import access_review, allowed_by, token_review, user_of

PRESENTED = Presented(token="t0ken", audience=None)
FOR_AGENTS = Presented(token="t0ken", audience="hvprobe")
USER = User(
    name="system:serviceaccount:monitoring:prometheus",
    uid="5a5a",
    groups=("system:serviceaccounts", "system:authenticated"),
    extra=(("authentication.kubernetes.io/pod-name", ("prometheus-0",)),),
)
OF_USER = {
    "username": USER.name,
    "uid": USER.uid,
    "groups": [*USER.groups],
    "extra": {key: [*values] for key, values in USER.extra},
}
WHERE = {"server": "https://api:6443", "credentials": "the service account"}


def answer(status: object, code: int = 201) -> Answer:
    return Answer(status=code, body=json.dumps({"status": status}).encode(), retry_after_s=None)


def refused(code: int, message: str) -> Answer:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return Answer(status=code, body=json.dumps(body).encode(), retry_after_s=None)


def test_the_review_of_a_token() -> None:
    """Without an audience the server checks that the token is for itself."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
    assert json.loads(token_review(PRESENTED)) == {**review, "spec": {"token": "t0ken"}}
    spec = {"token": "t0ken", "audiences": ["hvprobe"]}
    assert json.loads(token_review(FOR_AGENTS)) == {**review, "spec": spec}


def test_the_review_of_access() -> None:
    """All that the server said of the user goes into it, and the path as one of no resource."""
    assert json.loads(access_review(USER, "/why/vms/alpha")) == {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": USER.name,
            "uid": USER.uid,
            "groups": [*USER.groups],
            "extra": {key: [*values] for key, values in USER.extra},
            "nonResourceAttributes": {"path": "/why/vms/alpha", "verb": "get"},
        },
    }


@pytest.mark.parametrize(
    ("presented", "audiences"),
    [(PRESENTED, None), (PRESENTED, ["https://kubernetes.default.svc"]), (FOR_AGENTS, ["hvprobe"])],
)
def test_a_valid_token(presented: Presented, audiences: list[str] | None) -> None:
    """The user is the server's, with uid, groups and extra."""
    status = {"authenticated": True, "user": OF_USER, "audiences": audiences}
    assert user_of(answer(status), presented, **WHERE) == USER


@pytest.mark.parametrize("audiences", [None, [], ["https://kubernetes.default.svc"]])
def test_a_token_for_another_audience(audiences: list[str] | None) -> None:
    """A server that does not confirm the audience has not checked it: the token is not valid."""
    status = {"authenticated": True, "user": OF_USER, "audiences": audiences}
    assert user_of(answer(status), FOR_AGENTS, **WHERE) is None


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"user": {}, "error": "[invalid bearer token]"},
        {"authenticated": False, "user": OF_USER},
        {"authenticated": True, "user": {}},
        {"authenticated": True, "user": {"username": ""}},
    ],
)
def test_a_token_that_is_not_valid(status: object) -> None:
    """Without an authenticated user with a name there is none."""
    assert user_of(answer(status), PRESENTED, **WHERE) is None


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ({"allowed": True}, True),
        ({"allowed": False}, False),
        ({"allowed": False, "denied": True}, False),
        ({"allowed": True, "denied": True}, False),
        ({"allowed": True, "reason": "RBAC: allowed by"}, True),
    ],
)
def test_access(status: object, allowed: bool) -> None:
    """A denial wins over a permission."""
    assert allowed_by(answer(status), **WHERE) is allowed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"<html>",
        b'{"status": null}',
        b'{"status": {"allowed": "yes"}}',
        b'{"status": {}}',
        b'{"status": {"allowed": 1}}',
        b"[" * 100_000,
    ],
)
def test_an_answer_that_makes_no_sense_allows_nothing(body: bytes) -> None:
    """It is an error of one line, never a permission."""
    with pytest.raises(ReviewError) as caught:
        allowed_by(Answer(status=201, body=body, retry_after_s=None), **WHERE)
    assert "sent no valid answer" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (403, "apply deploy/components/authorization, or set --authorization none"),
        (401, "refuses the service account (401 Unauthorized)"),
        (429, "is busy (429 Too Many Requests)"),
        (500, "failed to create tokenreviews.authentication.k8s.io (HTTP 500)"),
        (302, "failed to create tokenreviews.authentication.k8s.io (HTTP 302)"),
    ],
)
def test_a_refusal_is_one_line(code: int, says: str) -> None:
    """It names the server and the remedy, repeats what the server says, and never the token."""
    with pytest.raises(ReviewError) as caught:
        user_of(refused(code, "two\nlines"), PRESENTED, **WHERE)
    line = str(caught.value)
    assert says in line
    assert "it says: two lines" in line
    assert "https://api:6443" in line
    assert "t0ken" not in line
