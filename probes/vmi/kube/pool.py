# SPDX-License-Identifier: Apache-2.0
"""EDGE: makes a pool of connections to the API server from credentials.

Owns how the ``kubernetes`` package is loaded, which no other module imports. Must not know what is
requested (client.py).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection

from probes.vmi.foreign_text import one_line
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.kubeconfig import KubeconfigError, context_of
from probes.vmi.kube.listwatch import ApiError

if sys.platform == "darwin":
    _KEEPIDLE = socket.TCP_KEEPALIVE
else:
    _KEEPIDLE = socket.TCP_KEEPIDLE
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, _KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""TCP keepalive of a connection. A watch may be silent for a minute; this detects a lost peer after
half of that."""


@dataclass(frozen=True, slots=True)
class Transport:
    """The parts of the package in use: settings that know the token, and a pool that knows TLS."""

    configuration: Any
    pool: urllib3.PoolManager
    errors: tuple[type[Exception], ...]
    """What reading the token from the configuration may raise."""

    def headers(self, credentials: str) -> dict[str, str]:
        """Return the headers of a request. credentials is what errors call them.

        Raises ApiError when the token cannot be read.
        """
        headers = {"Accept": "application/json", "User-Agent": "hvprobe"}
        try:
            # The package re-reads a rotated token only when the settings are read.
            settings = self.configuration.auth_settings()
        except self.errors as err:
            raise ApiError(f"cannot use {credentials}: {one_line(str(err))}") from err
        for setting in settings.values():
            value = (setting["value"] or "").strip()
            if not (value.isascii() and value.isprintable()):
                # http.client would refuse it, with the token in the message.
                raise ApiError(f"cannot use {credentials}: it contains no token")
            if setting["in"] == "header" and value:
                headers[setting["key"]] = value
        return headers


def transport_of(config: InCluster | Kubeconfig, *, connections: int = 4) -> Transport:
    """Make a pool from credentials as they are now. Raises ApiError when they cannot be used.

    connections is how many are kept for further requests.
    """
    if isinstance(config, InCluster):
        return _in_cluster(config, connections)
    return _from_kubeconfig(config, connections)


def _in_cluster(config: InCluster, connections: int) -> Transport:
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
    return _transport(configuration, rest, errors, connections)


def _from_kubeconfig(config: Kubeconfig, connections: int) -> Transport:
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
        merged = kube_config.KubeConfigMerger(str(config.file))
        if merged.config is None:
            raise _unusable(config, "no such file")
        context = context_of(merged.config_files.values(), config.context)
        with _heard() as lines:
            loader = kube_config.KubeConfigLoader(
                merged.config, active_context=context.name, config_base_path=None
            )
            loader.load_and_set(configuration)
    except (*errors, KubeconfigError, yaml.YAMLError) as err:
        raise _unusable(config, one_line(str(err))) from err
    # The loader does not check types, so a malformed file may raise any of these errors.
    except (ValueError, TypeError, LookupError, AttributeError) as err:
        said = one_line(f"{type(err).__name__}: {err}")
        raise _unusable(config, f"the Python client cannot read it ({said})") from err
    if lines:
        # The package only logs this, and would go on as an anonymous user.
        raise _unusable(config, f"{context.plugin!a} gave no credentials: {one_line(lines[0])}")
    if not configuration.host.startswith(("https://", "http://")):
        raise _unusable(config, f"its server {configuration.host!a} does not begin with https://")
    return _transport(configuration, rest, errors, connections)


def _unusable(config: Kubeconfig, why: str) -> ApiError:
    return ApiError(
        f"cannot use kubeconfig {config.file}: {why}: check that kubectl --kubeconfig works with it"
    )


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect what the package logs in the block, which it does with the root logger."""
    lines: list[str] = []

    def hear(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(hear)
    try:
        yield lines
    finally:
        root.removeFilter(hear)


def _transport(
    configuration: Any,  # noqa: ANN401 - the package has no types
    rest: Any,  # noqa: ANN401 - the package has no types
    errors: tuple[type[Exception], ...],
    connections: int,
) -> Transport:
    if not configuration.verify_ssl:
        # The user's own choice, of which urllib3 would warn at each request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    configuration.connection_pool_maxsize = connections
    configuration.socket_options = [*HTTPConnection.default_socket_options, *_KEEPALIVE]
    try:
        pool = rest.RESTClientObject(configuration).pool_manager
    except ImportError as err:
        raise ApiError(f"cannot use a SOCKS proxy: {one_line(str(err))}: install PySocks") from err
    return Transport(configuration, pool, errors)


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
