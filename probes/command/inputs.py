# SPDX-License-Identifier: Apache-2.0
"""EDGE: checks that the files and folders that a user names exist and are what they should be.

It runs once, before anything is compiled, attached or retried, because a wrong path is wrong usage,
not a temporary failure. Must not know what is done with them.
"""

import importlib
import os
import stat
from pathlib import Path

from probes.command.flags import Authorizing, UsageError
from probes.command.fleet_settings import FleetSettings
from probes.command.settings import AgentSettings, CompletionSettings, Settings
from probes.vmi.foreign_text import one_line
from probes.vmi.kube.credentials import InCluster


def check(settings: Settings) -> None:
    """Check all inputs. Raises UsageError when one cannot be what it should be."""
    if isinstance(settings, CompletionSettings):
        return
    if isinstance(settings, FleetSettings):
        if settings.kubeconfig is not None and os.pathsep not in str(settings.kubeconfig):
            _check_kubeconfig(settings.kubeconfig)
        return
    _check_root(settings.proc_root, "stat", flag="--proc", what="/proc")
    _check_root(settings.sys_root, "kernel", flag="--sys", what="/sys")
    if settings.kubeconfig is not None:
        _check_kubeconfig(settings.kubeconfig)
    if isinstance(settings, AgentSettings) and settings.events:
        _check_cluster(settings, "--events")
    if isinstance(settings, AgentSettings) and settings.authorization is Authorizing.KUBERNETES:
        _check_cluster(settings, "--authorization kubernetes")
    if isinstance(settings, AgentSettings) and settings.tls is not None:
        for file in (settings.tls.cert, settings.tls.key, settings.tls.client_ca):
            if file is not None:
                _check_readable(file)


def _check_root(root: Path, sign: str, *, flag: str, what: str) -> None:
    """Check a root by an entry that is always in it and rarely in another folder."""
    try:
        (root / sign).stat()
    except OSError as err:
        where = root if not root.is_dir() else root / sign
        raise UsageError(
            f"{flag} {root}: no {what} is there ({where}: {err.strerror}); use the path at which "
            f"the host's {what} is mounted"
        ) from err


def _check_cluster(settings: AgentSettings, flag: str) -> None:
    """Check that there is an API server, which a flag needs."""
    if settings.kubeconfig is None and not InCluster().mounted():
        raise UsageError(
            f"{flag} needs a cluster, and no service account is mounted; give --kubeconfig, or "
            f"omit {flag}"
        )


def _check_readable(file: Path) -> None:
    """Check that a TLS file is readable. The server checks its content, also at each renewal."""
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as err:
        raise UsageError(
            f"cannot read TLS file {file}: {os.strerror(err.errno or 0)}; check the path and that "
            "this user may read it"
        ) from err


def _check_kubeconfig(file: Path) -> None:
    """Check that a file is what kubectl could read: YAML, with clusters and contexts."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISFIFO(mode):
            return  # a shell's <(…): what is read here would be missing later
        if stat.S_ISDIR(mode):
            raise UsageError(f"kubeconfig {file} is a directory; use a file")
        text = file.read_text()
    except OSError as err:
        raise UsageError(
            f"cannot read kubeconfig {file}: {os.strerror(err.errno or 0)}; check the path and "
            "that this user may read it"
        ) from err
    except ValueError as err:
        raise _no_kubeconfig(file, "it is not text") from err
    yaml = importlib.import_module("yaml")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise _no_kubeconfig(file, f"it is not YAML ({one_line(str(err), longest=200)})") from err
    if not (isinstance(found, dict) and found.get("clusters") and found.get("contexts")):
        raise _no_kubeconfig(file, "it contains no clusters and contexts")


def _no_kubeconfig(file: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot use kubeconfig {file}: {why}; check that kubectl --kubeconfig works with it"
    )
