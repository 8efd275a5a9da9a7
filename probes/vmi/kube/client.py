# SPDX-License-Identifier: Apache-2.0
"""EDGE: sends one request to the Kubernetes API server, through the official client.

Owns credentials, TLS, proxies and connections, which the ``kubernetes`` package provides and no
other module imports, and turning every error it raises into one line. Must not know what is read,
nor what happens after a failure (watch.py).

Only the package's configuration and connection pool are used. listwatch.py decodes the answers,
because the package's API classes would build a model of every field. Import this module in cluster
mode only: it imports urllib3 and ssl.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError, SSLError

from probes.vmi.foreign_text import one_line
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
from probes.vmi.kube.timing import Failure, retry_after_s

_REFUSAL_BYTES = 1 << 16
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""TCP keepalive of a connection. A watch may be silent for a minute; this detects a lost peer after
half of that."""


@dataclass(frozen=True, slots=True)
class _Transport:
    """The parts of the package in use: settings that know the token, and a pool that knows TLS."""

    configuration: Any
    pool: urllib3.PoolManager
    errors: tuple[type[Exception], ...]
    """What reading the token from the configuration may raise."""


class ApiReader:
    """One set of credentials as they are now, and the connections made with them."""

    def __init__(
        self, config: InCluster | Kubeconfig, *, connect_timeout_s: float, answer_deadline_s: float
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._answer_deadline_s = answer_deadline_s
        self._deadline_s = answer_deadline_s
        self._answered = False
        if isinstance(config, InCluster):
            self._transport = _in_cluster(config)
            self._credentials = f"the service account in {config.token_file.parent}"
        else:
            self._transport = _from_kubeconfig(config)
            self._credentials = f"the credentials in {config.file}"
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
        self._answered = False
        self._deadline_s = self._answer_deadline_s
        response = self._transport.pool.request(
            "GET",
            self.server + PATH,
            fields=params,
            headers=self._headers(),
            timeout=urllib3.Timeout(connect=self._connect_timeout_s, read=self._answer_deadline_s),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        self._answered = True
        if response.status == HTTPStatus.OK:
            if silence_s is not None:
                _allow_silence(response, silence_s)
                self._deadline_s = silence_s
            return response
        try:
            body = response.read(_REFUSAL_BYTES)
        finally:
            response.close()
        headers = response.headers
        raise refusal(
            self.server,
            verb,
            response.status,
            status_message(body),
            credentials=self._credentials,
            retry_after_s=retry_after_s(
                headers.get("Retry-After"), headers.get("Date"), time.time()
            ),
        )

    @contextmanager
    def reading(self, verb: Verb) -> Iterator[None]:
        """Turn errors of transport and protocol into ApiError with one line."""
        try:
            yield
        except ReadTimeoutError as err:
            raise ApiError(
                f"API server {self.server} sent no data for {self._deadline_s:g} s "
                f"while we {verb.value} {RESOURCE}: reconnecting",
                Failure.BROKEN if self._answered else Failure.HUNG,
            ) from err
        except SSLError as err:
            raise ApiError(
                f"TLS to API server {self.server} failed: {_cause(err)}: check that its "
                f"certificate is signed by the CA that came with {self._credentials}"
            ) from err
        except PayloadError as err:
            raise ApiError(
                f"API server {self.server} sent an invalid response: {err}", Failure.BROKEN
            ) from err
        except (HTTPError, OSError) as err:
            raise ApiError(
                f"cannot {verb.value} {RESOURCE} at {self.server}: {_cause(err)}: trying again",
                Failure.BROKEN if self._answered else Failure.UNANSWERED,
            ) from err

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "hvprobe"}
        try:
            # The package re-reads a rotated token only when the settings are read.
            settings = self._transport.configuration.auth_settings()
        except self._transport.errors as err:
            raise ApiError(f"cannot use {self._credentials}: {one_line(str(err))}") from err
        for setting in settings.values():
            value = (setting["value"] or "").strip()
            if not (value.isascii() and value.isprintable()):
                # http.client would refuse it, with the token in the message.
                raise ApiError(f"cannot use {self._credentials}: it contains no token")
            if setting["in"] == "header" and value:
                headers[setting["key"]] = value
        return headers


def _in_cluster(config: InCluster) -> _Transport:
    """Make the package's configuration from the mounted service account."""
    try:
        incluster, rest = _lean_client()
    except ImportError as err:
        raise _no_package(err) from err
    configuration = incluster.Configuration()
    loader = incluster.InClusterConfigLoader(
        token_filename=str(config.token_file),
        cert_filename=str(config.ca_file),
        environ=config.environ,
    )
    errors = (incluster.ConfigException, OSError, UnicodeDecodeError)
    try:
        loader.load_and_set(configuration)
    except errors as err:
        raise ApiError(
            f"no service account to use in {config.token_file.parent}: {one_line(str(err))}: "
            "mount one, or give --kubeconfig or --standalone"
        ) from err
    return _transport(configuration, rest, errors)


def _from_kubeconfig(config: Kubeconfig) -> _Transport:
    """Make the package's configuration from a kubeconfig file.

    This imports the entire package.
    """
    try:
        kube_config = importlib.import_module("kubernetes.config.kube_config")
        rest = importlib.import_module("kubernetes.client.rest")
        yaml = importlib.import_module("yaml")
    except ImportError as err:
        raise _no_package(err) from err
    configuration = kube_config.Configuration()
    errors = (kube_config.ConfigException, OSError, UnicodeDecodeError)
    try:
        kube_config.load_kube_config(
            config_file=str(config.file),
            client_configuration=configuration,
            persist_config=False,
        )
    # The loader does not check types, so a malformed file may raise any of these errors.
    except (*errors, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as err:
        raise ApiError(
            f"cannot use kubeconfig {config.file}: {one_line(str(err))}: "
            "check that kubectl --kubeconfig works with it"
        ) from err
    return _transport(configuration, rest, errors)


def _transport(
    configuration: Any,  # noqa: ANN401 - the package has no types
    rest: Any,  # noqa: ANN401 - the package has no types
    errors: tuple[type[Exception], ...],
) -> _Transport:
    configuration.socket_options = [*HTTPConnection.default_socket_options, *_KEEPALIVE]
    return _Transport(configuration, rest.RESTClientObject(configuration).pool_manager, errors)


def _no_package(error: ImportError) -> ApiError:
    return ApiError(f"cannot load the Python package kubernetes: {error}: reinstall hvprobe")


@functools.cache
def _lean_client() -> tuple[Any, Any]:
    """Import the package's ``config.incluster_config`` and ``client.rest``, and little else.

    ``import kubernetes`` runs an __init__ that imports every part: OAuth, YAML, pydantic, requests,
    websockets; 31 MiB of memory instead of 13, 115 ms instead of 40 (kubernetes 37.0.2). Python
    runs no __init__ for a package that is in sys.modules already, so the three costly packages are
    put there without executing them. All are removed afterwards, so that a later import of
    ``kubernetes`` gets the real package.
    """
    before = set(sys.modules)
    for name in ("kubernetes", "kubernetes.config", "kubernetes.utils"):
        spec = None if name in before else importlib.util.find_spec(name)
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        return (
            importlib.import_module("kubernetes.config.incluster_config"),
            importlib.import_module("kubernetes.client.rest"),
        )
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "kubernetes":
                del sys.modules[name]


def _allow_silence(response: urllib3.BaseHTTPResponse, silence_s: float) -> None:
    """Allow the body of an answer to pause for longer than its head may take.

    urllib3 has one time-out for both. The socket is taken from an attribute of urllib3's response,
    because a response after which the connection closes has taken it from its connection.
    """
    sock = getattr(getattr(response, "_sock_shutdown", None), "__self__", None)
    if sock is not None:
        sock.settimeout(silence_s)


def interrupt(response: urllib3.BaseHTTPResponse) -> None:
    """Make a read in which another thread is blocked return."""
    try:
        response.shutdown()
    except (OSError, RuntimeError, ValueError):
        return  # Closed already, or read to its end: no read is blocked in it.


def _cause(error: BaseException) -> str:
    """Return the innermost cause of a transport error, without urllib3's wrapping."""
    for inner in (error.__cause__, *error.args, error.__context__):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
    return one_line(str(error))
