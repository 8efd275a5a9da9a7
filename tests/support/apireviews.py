# SPDX-License-Identifier: Apache-2.0
"""The tokens and rights that the test API server knows, and its two reviews of them.

It answers as kube-apiserver does (pkg/registry/authentication/tokenreview, pkg/registry/
authorization/subjectaccessreview and the RBAC authorizer): what is reviewed is in the answer again
with a status, a token is valid for one of the audiences that are asked for, and an audience that
is not asked for is not named.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
from dataclasses import dataclass, field

from tests.support.apistore import JsonObject

TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
RESOURCES = {
    TOKENS: ("tokenreviews", "authentication.k8s.io", "TokenReview"),
    ACCESS: ("subjectaccessreviews", "authorization.k8s.io", "SubjectAccessReview"),
}
SERVER_AUDIENCE = "https://kubernetes.default.svc"
"""The audience of the API server itself (--api-audiences)."""
_NUMBERS = itertools.count()


class ReviewRefusedError(Exception):
    """A review that the server would not decode or validate; the message is a Status'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A service account, and the audiences of one of its tokens."""

    namespace: str
    name: str
    audiences: tuple[str, ...]

    @property
    def user(self) -> JsonObject:
        """The user, as authentication makes it of a service account's token."""
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}"]
        return {
            "username": self.username,
            "uid": f"uid-of-{self.name}",
            "groups": [*groups, "system:authenticated"],
            "extra": {"authentication.kubernetes.io/pod-name": ["scraper-0"]},
        }

    @property
    def username(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"


@dataclass(slots=True)
class ReviewStore:
    """Tokens, and who may get which paths. Thread-safe."""

    may: set[str] = field(default_factory=lambda: {"tokenreviews", "subjectaccessreviews"})
    """The reviews that every user but anonymous may create."""
    knows_audiences: bool = True
    """False: as with an authenticator that knows none, no audience is named in an answer."""
    tokens: dict[str, Account] = field(default_factory=dict)
    paths: dict[str, set[str]] = field(default_factory=dict)
    """Non-resource URLs that may be got, by user; one that ends in * stands for all below it."""
    asked: list[tuple[str, JsonObject]] = field(default_factory=list)
    """(path, spec) of each review, in order."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def token(
        self, namespace: str = "monitoring", name: str = "scraper", *, audience: str | None = None
    ) -> str:
        """Make a token of a service account, in the form of a JSON web token.

        audience None: the API server's.
        """
        audiences = (audience or SERVER_AUDIENCE,)
        account = Account(namespace=namespace, name=name, audiences=audiences)
        claims = {"aud": [*audiences], "sub": account.username, "jti": next(_NUMBERS)}
        parts = [_encoded({"alg": "RS256"}), _encoded(claims), _encoded({"signed": "yes"})]
        token = ".".join(parts)
        with self.lock:
            self.tokens[token] = account
        return token

    def allow(self, namespace: str, name: str, *paths: str) -> None:
        """Give a service account the verb get on these paths, and no other ones."""
        account = Account(namespace=namespace, name=name, audiences=())
        with self.lock:
            self.paths[account.username] = {*paths}

    def forget(self, token: str) -> None:
        """Make a token invalid, as the end of its pod does."""
        with self.lock:
            del self.tokens[token]

    def count(self, path: str) -> int:
        """How many reviews of a kind there were."""
        with self.lock:
            return sum(asked == path for asked, _ in self.asked)

    def review(self, path: str, body: bytes) -> JsonObject:
        """Answer a review. Raises ReviewRefusedError when it is none."""
        _, group, kind = RESOURCES[path]
        review = json.loads(body)
        if (review["apiVersion"], review["kind"]) != (f"{group}/v1", kind):
            raise ReviewRefusedError("the object provided is unrecognized")
        spec = review["spec"]
        with self.lock:
            self.asked.append((path, spec))
            status = self._of_token(spec) if path == TOKENS else self._of_access(spec)
        return {**review, "metadata": {"creationTimestamp": None}, "status": status}

    def _of_token(self, spec: JsonObject) -> JsonObject:
        if set(spec) - {"token", "audiences"} or not spec.get("token"):
            raise ReviewRefusedError("token is required for TokenReview in authentication")
        wanted = spec.get("audiences") or [SERVER_AUDIENCE]
        assert isinstance(wanted, list)
        account = self.tokens.get(str(spec["token"]))
        if account is None:
            return {"user": {}, "error": "[invalid bearer token, unknown]"}
        if not self.knows_audiences:
            return {"authenticated": True, "user": account.user}
        named = [audience for audience in wanted if audience in account.audiences]
        if not named:
            error = f"[invalid bearer token, token audiences {[*account.audiences]} is invalid]"
            return {"user": {}, "error": error}
        return {"authenticated": True, "user": account.user, "audiences": named}

    def _of_access(self, spec: JsonObject) -> JsonObject:
        if set(spec) - {"user", "uid", "groups", "extra", "nonResourceAttributes"}:
            raise ReviewRefusedError(f"unknown fields in {sorted(spec)}")
        asked = spec["nonResourceAttributes"]
        if not (spec.get("user") or spec.get("groups")) or not isinstance(asked, dict):
            raise ReviewRefusedError("at least one of user or group must be specified")
        allowed = asked["verb"] == "get" and any(
            asked["path"] == url or (url.endswith("*") and asked["path"].startswith(url[:-1]))
            for url in self.paths.get(str(spec["user"]), ())
        )
        reason = 'RBAC: allowed by ClusterRoleBinding "reader"' if allowed else ""
        return {"allowed": allowed, "reason": reason}


def _encoded(part: JsonObject) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
