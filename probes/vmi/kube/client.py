# SPDX-License-Identifier: Apache-2.0
"""EDGE: sends one request to the Kubernetes API server, through the official client.

Owns the requests that hvprobe makes, which read VMIs, create an Event and have something reviewed,
and turning every error into one line. Must not know what a request is for, what happens after a
failure (watch.py, event_writer.py, reviewer.py), nor how credentials become connections (pool.py).

Only the package's configuration and connection pool are used. listwatch.py decodes the answers,
because the package's API classes would build a model of every field. Import this module in cluster
mode only: it imports urllib3 and ssl.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError, SSLError

from probes.vmi.foreign_text import one_line
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.listwatch import (
    PATH,
    RESOURCE,
    ApiError,
    PayloadError,
    Verb,
    refusal,
    status_message,
)
from probes.vmi.kube.pool import transport_of
from probes.vmi.kube.timing import Failure, retry_after_s

_REFUSAL_BYTES = 1 << 16


class ApiReader:
    """One set of credentials as they are now, and the connections made with them."""

    def __init__(
        self, config: InCluster | Kubeconfig, *, connect_timeout_s: float, answer_deadline_s: float
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._answer_deadline_s = answer_deadline_s
        self._deadline_s = answer_deadline_s
        self._answered = False
        self._transport = transport_of(config)
        self.credentials: str = config.words
        self.server: str = self._transport.configuration.host.rstrip("/")

    def close(self) -> None:
        """Close the connections."""
        self._transport.pool.clear()

    def get(
        self, verb: Verb, params: Mapping[str, str], *, silence_s: float | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Request the resource and return the unread body. Raises ApiError when the server refuses.

        The body may be silent for ``silence_s``, or by default as long as the head of an answer.
        """
        response = self._send("GET", PATH, fields=params)
        if response.status == HTTPStatus.OK:
            if silence_s is not None:
                allow_silence(response, silence_s)
                self._deadline_s = silence_s
            return response
        refused = _answer(response)
        raise refusal(
            self.server,
            verb,
            refused.status,
            status_message(refused.body),
            credentials=self.credentials,
            retry_after_s=refused.retry_after_s,
        )

    def create_event(self, namespace: str, body: bytes) -> Answer:
        """Create an Event in this namespace and return the server's answer, also a refusal."""
        path = f"/apis/events.k8s.io/v1/namespaces/{quote(namespace, safe='')}/events"
        return _answer(self._send("POST", path, body=body))

    def create_review(self, path: str, body: bytes) -> Answer:
        """Have something reviewed and return the server's answer, also a refusal.

        A review is an object that the server answers and does not store.
        """
        return _answer(self._send("POST", path, body=body))

    def _send(
        self,
        method: str,
        path: str,
        *,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the unread answer."""
        self._answered = False
        self._deadline_s = self._answer_deadline_s
        headers = self._transport.headers(self.credentials)
        if body is not None:
            headers["Content-Type"] = "application/json"
        response = self._transport.pool.request(
            method,
            self.server + path,
            fields=fields,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=self._connect_timeout_s, read=self._answer_deadline_s),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        self._answered = True
        return response

    @contextmanager
    def reading(self, verb: Verb, resource: str = RESOURCE) -> Iterator[None]:
        """Turn errors of transport and protocol into ApiError with one line."""
        try:
            yield
        except ReadTimeoutError as err:
            raise ApiError(
                f"API server {self.server} sent no data for {self._deadline_s:g} s "
                f"while we {verb.value} {resource}: reconnecting",
                Failure.BROKEN if self._answered else Failure.HUNG,
            ) from err
        except SSLError as err:
            raise ApiError(
                f"TLS to API server {self.server} failed: {cause_of(err)}: check that its "
                f"certificate is signed by the CA that came with {self.credentials}"
            ) from err
        except PayloadError as err:
            raise ApiError(
                f"API server {self.server} sent an invalid response: {err}", Failure.BROKEN
            ) from err
        except (HTTPError, OSError) as err:
            raise ApiError(
                f"cannot {verb.value} {resource} at {self.server}: {cause_of(err)}: trying again",
                Failure.BROKEN if self._answered else Failure.UNANSWERED,
            ) from err


def allow_silence(response: urllib3.BaseHTTPResponse, silence_s: float) -> None:
    """Allow the body of an answer to pause for longer than its head may take.

    urllib3 has one time-out for both. The socket is taken from an attribute of urllib3's response,
    because a response after which the connection closes has taken it from its connection.
    """
    sock = getattr(getattr(response, "_sock_shutdown", None), "__self__", None)
    if sock is not None:
        sock.settimeout(silence_s)


def _answer(response: urllib3.BaseHTTPResponse) -> Answer:
    """Read an answer that is short: its beginning suffices to know what it says."""
    try:
        body = response.read(_REFUSAL_BYTES)
    finally:
        response.close()
    headers = response.headers
    return Answer(
        status=response.status,
        body=body,
        retry_after_s=retry_after_s(headers.get("Retry-After"), headers.get("Date"), time.time()),
    )


def interrupt(response: urllib3.BaseHTTPResponse) -> None:
    """Make a read in which another thread is blocked return."""
    try:
        response.shutdown()
    except (OSError, RuntimeError, ValueError):
        return  # Closed already, or read to its end: no read is blocked in it.


def cause_of(error: BaseException) -> str:
    """Return the innermost cause of a transport error, without urllib3's wrapping."""
    for inner in (error.__cause__, *error.args, error.__context__):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return one_line(str(error))
