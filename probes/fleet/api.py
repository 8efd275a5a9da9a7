# SPDX-License-Identifier: Apache-2.0
"""EDGE: sends requests to the API server for the cluster-wide view, with a deadline each.

Owns time-outs, bounds, and turning every error into one line. Must not know what is requested, nor
what an answer means (proxy.py, discovery.py). Any thread may send requests.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, NewConnectionError, ProxyError, SSLError
from urllib3.exceptions import TimeoutError as LateError

from probes.fleet.model import FleetError
from probes.vmi.kube.client import allow_silence, cause_of
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.listwatch import ApiError
from probes.vmi.kube.pool import transport_of
from probes.vmi.kube.timing import retry_after_s

BODY_BYTES_MAX = 64 << 20
"""The longest answer that is read. The report of a node with 1000 VMs has 2 MB."""
_CHUNK_BYTES = 1 << 16
_ENCODINGS = frozenset({"identity", "gzip"})
_RETRY_S = 1.0
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class RequestError(Exception):
    """A request has no usable answer.

    The message is one line: why.
    """


class LateAnswerError(RequestError):
    """A request has no answer within its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAnswer:
    """The answer to one request, also a refusal."""

    status: int
    body: bytes
    content_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    path: str
    fields: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class FleetApi:
    """The API server of a cluster, and the connections to it."""

    def __init__(self, config: InCluster | Kubeconfig, *, connections: int) -> None:
        """Use these credentials. Raises FleetError when they cannot be used.

        The token is read once, because a plugin of the kubeconfig that makes tokens may be slow or
        ask the user.
        """
        try:
            self._transport = transport_of(config, connections=connections)
            self._headers = self._transport.headers(config.words)
        except ApiError as err:
            raise FleetError(str(err)) from err
        self.server: str = self._transport.configuration.host.rstrip("/")
        self.credentials = config.words
        proxy = urlsplit(self._transport.configuration.proxy or "")
        # Without the password that it may contain.
        self._proxy = f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"

    def close(self) -> None:
        """Close the connections."""
        self._transport.pool.clear()

    def get(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        *,
        deadline_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> ApiAnswer:
        """Return the complete answer to a request.

        A server that is busy (429) is asked again, as long as there is time. Raises RequestError
        when there is no answer, and LateAnswerError when it is not complete in time.
        """
        request = _Request(method="GET", path=path, fields=fields, headers=headers)
        return self._answer(request, deadline_s)

    def create(self, path: str, body: bytes, *, deadline_s: float) -> ApiAnswer:
        """Return the answer to a request that creates something. Raises what get() raises."""
        headers = {"Content-Type": "application/json"}
        request = _Request(method="POST", path=path, headers=headers, body=body)
        return self._answer(request, deadline_s)

    def _answer(self, request: "_Request", deadline_s: float) -> ApiAnswer:
        end_s = time.monotonic() + deadline_s
        late = LateAnswerError(f"no answer within {deadline_s:g} s")
        try:
            while True:
                answer, wait_s = self._once(request, end_s, late)
                if answer.status != HTTPStatus.TOO_MANY_REQUESTS:
                    return answer
                if time.monotonic() + wait_s >= end_s:
                    return answer
                time.sleep(wait_s)
        except ProxyError as err:
            raise RequestError(
                f"cannot reach API server {self.server} through the proxy {self._proxy}: "
                f"{cause_of(err.original_error)}"
            ) from err
        except NewConnectionError as err:
            raise RequestError(f"cannot reach API server {self.server}: {cause_of(err)}") from err
        except LateError as err:
            raise late from err
        except SSLError as err:
            raise RequestError(
                f"TLS to API server {self.server} failed: {cause_of(err)}: check that its "
                f"certificate is signed by the CA that came with {self.credentials}"
            ) from err
        except (HTTPError, OSError) as err:
            raise RequestError(f"cannot reach API server {self.server}: {cause_of(err)}") from err

    def _once(
        self,
        request: "_Request",
        end_s: float,
        late: LateAnswerError,
    ) -> tuple[ApiAnswer, float]:
        """Send one request. Returns the answer, and how long a busy server wants to be left alone.

        Raises what urllib3 raises, and the given error when time is up between two reads.
        """
        response = self._transport.pool.request(
            request.method,
            self.server + request.path,
            fields=request.fields,
            body=request.body,
            headers={**self._headers, "Accept-Encoding": "gzip", **request.headers},
            timeout=_left_s(end_s, late),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        body = _body(response, end_s, late)
        headers = response.headers
        asked_s = retry_after_s(headers.get("Retry-After"), headers.get("Date"), time.time())
        answer = ApiAnswer(
            status=response.status,
            body=body,
            content_type=headers.get("Content-Type", ""),
        )
        return answer, _RETRY_S if asked_s is None else max(asked_s, 0.1)


def _body(response: BaseHTTPResponse, end_s: float, late: LateAnswerError) -> bytes:
    """Read an answer to its end; a connection that is read only in part is not used again."""
    chunks: list[bytes] = []
    held_bytes = 0
    try:
        # More than one layer of compression could make gigabytes of one chunk.
        if response.headers.get("Content-Encoding", "identity").lower() not in _ENCODINGS:
            raise RequestError("its answer has an encoding that was not requested")
        while True:
            left_s = _left_s(end_s, late)
            # A connection that ends with its answer may be closed before the end is read.
            with contextlib.suppress(OSError):
                allow_silence(response, left_s)
            chunk = response.read1(_CHUNK_BYTES, decode_content=True)
            if not chunk:
                break
            chunks.append(chunk)
            held_bytes += len(chunk)
            if held_bytes > BODY_BYTES_MAX:
                raise RequestError(f"its answer is longer than {BODY_BYTES_MAX} bytes")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return b"".join(chunks)


def _left_s(end_s: float, late: LateAnswerError) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise late
    return left_s
