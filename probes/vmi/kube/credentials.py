# SPDX-License-Identifier: Apache-2.0
"""Finds the credentials for the API server.

Owns how a pod with a service account is recognized. Must not know how the server is reached. It
imports little, so that a program can find out whether it runs in a cluster before it loads what a
cluster needs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class InCluster:
    """The service account that Kubernetes mounts into a pod."""

    token_file: Path = _SERVICE_ACCOUNT / "token"
    ca_file: Path = _SERVICE_ACCOUNT / "ca.crt"
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """Holds KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT."""

    @property
    def words(self) -> str:
        """What these credentials are called in an error."""
        return f"the service account in {self.token_file.parent}"

    def mounted(self) -> bool:
        """Whether this process runs in a pod that has a service account."""
        return "KUBERNETES_SERVICE_HOST" in self.environ and self.token_file.is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubeconfig:
    """A kubeconfig file in kubectl's format, or several as $KUBECONFIG lists them."""

    file: Path
    context: str | None = None
    """The context that is used; None: the current one."""

    @property
    def words(self) -> str:
        """What these credentials are called in an error."""
        return f"the credentials in {self.file}"
