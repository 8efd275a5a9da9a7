# SPDX-License-Identifier: Apache-2.0
"""Holds what a user may choose of the cluster-wide view, and its defaults. Pure data.

The command line imports this module for every command, so it must import next to nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

from probes.host.hypervisors import HypervisorType

DEFAULT_NAMESPACE = "hvprobe"
DEFAULT_ACCOUNT = "hvprobe-fleet"
"""Service account in deploy/components/fleet."""
DEFAULT_SELECTOR = "app.kubernetes.io/name=hvprobe"
"""Namespace and label of the agents in deploy/base."""


class Form(StrEnum):
    """The form of what goes to stdout."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows are shown; an empty set selects all."""

    namespaces: frozenset[str] = frozenset()
    types: frozenset[HypervisorType] = frozenset()
    nodes: frozenset[str] = frozenset()
    causes: frozenset[str] = frozenset()
