# SPDX-License-Identifier: Apache-2.0
"""Takes the bearer token from a request. Pure.

Owns which header holds it, which form it has, and for which audience it must have been made. Must
not know whether a token is valid.

A token travels in one of two headers:

- ``Authorization: Bearer``, as Prometheus sends it. Such a token is made for the API server, as
  those of service accounts are by default, or better for the audience of agents alone: an agent
  that an attacker controls could use the first one at the API server. Which of the two it is, the
  token itself says, and the API server checks.
- ``X-Hvprobe-Token`` (agent_token.py) from clients behind the API server's pod proxy. Only tokens
  for the audience of agents are accepted there, so no user is led to show their own.
"""

import base64
import binascii
import json
import re

from probes.serve.routes import Request
from probes.vmi.access import Presented
from probes.vmi.agent_token import AGENT_AUDIENCE

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""The form of a bearer token (RFC 6750, 2.1)."""
_SCHEME = "bearer"


class MalformedError(ValueError):
    """A header holds no token in the form that it must have."""


def presented_by(request: Request) -> Presented | None:
    """Return the token of a request; None: it has none. Raises MalformedError."""
    if request.agent_token is not None:
        return Presented(token=_checked(request.agent_token), audience=AGENT_AUDIENCE)
    if request.authorization is None:
        return None
    scheme, _, rest = request.authorization.partition(" ")
    if scheme.lower() != _SCHEME:
        raise MalformedError("use Authorization: Bearer TOKEN")
    token = _checked(rest.strip())
    return Presented(
        token=token, audience=AGENT_AUDIENCE if AGENT_AUDIENCE in audiences(token) else None
    )


def audiences(token: str) -> frozenset[str]:
    """Return the audiences that a JSON web token names; empty: it is none, or names none.

    The signature is not checked. This decides only what the API server is asked.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return frozenset()
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return frozenset()
    named = claims.get("aud") if isinstance(claims, dict) else None
    words = named if isinstance(named, list) else [named]
    return frozenset(word for word in words if isinstance(word, str))


def _checked(token: str) -> str:
    if _TOKEN.fullmatch(token) is None:
        raise MalformedError("the token has not the form of a bearer token")
    return token
