# SPDX-License-Identifier: Apache-2.0
"""EDGE: has the API server review tokens and access.

Owns the order of the two requests, and how long each may take. Must not know how the server is
reached (client.py), what its answers mean (review_api.py), or how many reviews run at once.
"""

from __future__ import annotations

from probes.vmi.access import Presented, ReviewError, Ruling, User
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.client import ApiReader
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.listwatch import ApiError, Verb
from probes.vmi.kube.review_api import (
    ACCESS_PATH,
    ACCESS_REVIEWS,
    TOKEN_PATH,
    TOKEN_REVIEWS,
    access_review,
    allowed_by,
    token_review,
    user_of,
)

CONNECT_TIMEOUT_S = 2.0
ANSWER_DEADLINE_S = 4.0


class Reviewer:
    """Reviews with the credentials as they are at each review."""

    def __init__(
        self, config: InCluster | Kubeconfig, *, answer_deadline_s: float = ANSWER_DEADLINE_S
    ) -> None:
        self._config = config
        self._answer_deadline_s = answer_deadline_s

    def review(self, presented: Presented, user: User | None, path: str) -> Ruling:
        """Decide about a token and a path; blocks. Raises ReviewError when the server cannot.

        With a user only the access is reviewed.
        """
        try:
            api = ApiReader(
                self._config,
                connect_timeout_s=CONNECT_TIMEOUT_S,
                answer_deadline_s=self._answer_deadline_s,
            )
            try:
                return _review(api, presented, user, path)
            finally:
                api.close()
        except ApiError as err:
            raise ReviewError(str(err)) from err


def _review(api: ApiReader, presented: Presented, user: User | None, path: str) -> Ruling:
    asked = {"server": api.server, "credentials": api.credentials}
    if user is None:
        answer = _created(api, TOKEN_REVIEWS, TOKEN_PATH, token_review(presented))
        user = user_of(answer, presented, **asked)
    if user is None:
        return Ruling(user=None, allowed=False)
    answer = _created(api, ACCESS_REVIEWS, ACCESS_PATH, access_review(user, path))
    return Ruling(user=user, allowed=allowed_by(answer, **asked))


def _created(api: ApiReader, resource: str, path: str, body: bytes) -> Answer:
    with api.reading(Verb.CREATE, resource):
        return api.create_review(path, body)
