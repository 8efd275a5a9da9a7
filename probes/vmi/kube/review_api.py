# SPDX-License-Identifier: Apache-2.0
"""Defines the two reviews of the Kubernetes API, and what the server's answers mean. Pure.

Owns the bodies of TokenReview, which says whose a token is, and of SubjectAccessReview, which says
whether that user may get a path; and the messages about refusals. Must not know sockets, nor when
something is reviewed.

Source: kubernetes.io/docs/reference/kubernetes-api (TokenReview, SubjectAccessReview), and
k8s.io/apiserver's pkg/authentication and pkg/authorization webhooks, which components built with
controller-runtime use for the same.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeVar

import msgspec

from probes.vmi.access import VERB, Presented, ReviewError, User
from probes.vmi.foreign_text import one_line
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.listwatch import status_message

TOKEN_REVIEWS = "tokenreviews.authentication.k8s.io"  # noqa: S105 - the name of a resource
TOKEN_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
ACCESS_REVIEWS = "subjectaccessreviews.authorization.k8s.io"
ACCESS_PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: list[str] | None = None
    extra: dict[str, list[str]] | None = None


class _TokenStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: list[str] | None = None


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenStatus


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool
    denied: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    status: _AccessStatus


_T = TypeVar("_T")
_TOKEN_REVIEW = msgspec.json.Decoder(_TokenReview)
_ACCESS_REVIEW = msgspec.json.Decoder(_AccessReview)


def token_review(presented: Presented) -> bytes:
    """Return the request for whose a token is."""
    spec: dict[str, object] = {"token": presented.token}
    if presented.audience is not None:
        spec["audiences"] = [presented.audience]
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    return msgspec.json.encode(review)


def access_review(user: User, path: str) -> bytes:
    """Return the request for whether a user may get a path of an agent."""
    spec = {
        "user": user.name,
        "uid": user.uid,
        "groups": user.groups,
        "extra": dict(user.extra),
        "nonResourceAttributes": {"path": path, "verb": VERB},
    }
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    return msgspec.json.encode(review)


def user_of(answer: Answer, presented: Presented, *, server: str, credentials: str) -> User | None:
    """Return whose a token is; None: it is not valid, or was made for another audience.

    Raises ReviewError when the server does not say.
    """
    status = _reviewed(answer, _TOKEN_REVIEW, TOKEN_REVIEWS, server, credentials).status
    if not status.authenticated or not status.user.username:
        return None
    # A server that knows no audiences names none, and has checked only that the token is for the
    # API server.
    if presented.audience is not None and presented.audience not in (status.audiences or ()):
        return None
    user = status.user
    return User(
        name=user.username,
        uid=user.uid,
        groups=tuple(user.groups or ()),
        extra=tuple((key, tuple(values)) for key, values in (user.extra or {}).items()),
    )


def allowed_by(answer: Answer, *, server: str, credentials: str) -> bool:
    """Return whether the user may get the path. Raises ReviewError when the server does not say."""
    status = _reviewed(answer, _ACCESS_REVIEW, ACCESS_REVIEWS, server, credentials).status
    return status.allowed and not status.denied


def _reviewed(
    answer: Answer,
    decoder: msgspec.json.Decoder[_T],
    resource: str,
    server: str,
    credentials: str,
) -> _T:
    if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        raise ReviewError(_refusal(answer, resource, server, credentials))
    try:
        return decoder.decode(answer.body)
    except (ValueError, RecursionError) as err:
        raise ReviewError(
            f"API server {server} sent no valid answer to a request to create {resource}: "
            f"{one_line(str(err))}"
        ) from err


def _refusal(answer: Answer, resource: str, server: str, credentials: str) -> str:
    message = status_message(answer.body)
    said = f"; it says: {one_line(message)}" if message else ""
    match answer.status:
        case HTTPStatus.FORBIDDEN:
            return (
                f"not allowed to create {resource} at {server} (403 Forbidden): apply "
                f"deploy/components/authorization, or set --authorization none{said}"
            )
        case HTTPStatus.UNAUTHORIZED:
            return f"API server {server} refuses {credentials} (401 Unauthorized): check it{said}"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return f"API server {server} is busy (429 Too Many Requests){said}"
    return f"API server {server} failed to create {resource} (HTTP {answer.status}){said}"
