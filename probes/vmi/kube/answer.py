# SPDX-License-Identifier: Apache-2.0
"""Holds what the API server answers to a request that creates an object. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The server's complete answer to one request."""

    status: int
    body: bytes
    retry_after_s: float | None
    """The wait that the server asked for; None: it asked for none."""
