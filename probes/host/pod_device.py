# SPDX-License-Identifier: Apache-2.0
"""EDGE: looks for the accelerator's device in the root directory of a process.

Owns the way to the device and what decides whether the process may open it. Must not know what that
explains.

The device is never opened, only looked at. Each step leads through a descriptor that follows no
link, so the pod cannot lead the reader to a file elsewhere. Every step can block, because the pod
may have a FUSE file system anywhere, so the caller runs in a watched reader.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from probes.host.emulation import (
    NO_ID,
    Access,
    Credentials,
    FileOwner,
    Finding,
    parse_credentials,
    unknown,
)
from probes.host.process_folder import ProcessFolder

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL = "system.posix_acl_access"
_EVERY_ID = ["0", "0", "4294967295"]


def look_at_device(
    folder: ProcessFolder, device: str, number: int
) -> tuple[Finding[bool], Finding[bool]]:
    """Return whether the process's root directory has /dev/<device>, and whether it may open it.

    A file of that name counts only if it is the character device of this number.
    """
    name = f"/dev/{device}"
    way: list[int] = []
    with contextlib.ExitStack() as opened:
        try:
            for step in ("root", "dev", device):
                way.append(_step(folder, step, way))
                opened.callback(os.close, way[-1])
        except OSError as err:
            in_pod = _missing(name, err, after=way)
            return in_pod, unknown(in_pod.text)
        kinds = [os.fstat(fd).st_mode for fd in way]
        found = os.fstat(way[-1])
        if any(stat.S_ISLNK(kind) for kind in kinds):
            link = unknown(f"{name} in the pod is a symbolic link")
            return link, link
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != number:
            text = f"{name} in the pod is not the accelerator's device"
            return Finding(value=False, text=text), unknown(text)
        return Finding(value=True, text=f"the pod has {name}"), _accessible(folder, name, way)


def _step(folder: ProcessFolder, name: str, way: list[int]) -> int:
    """Look at one step of the way to the device. Raises OSError when it cannot be read."""
    if not way:
        return folder.directory(name)
    folder.at(f"{name} in its root directory")
    return os.open(name, _LOOK, dir_fd=way[-1])


def _missing(name: str, err: OSError, *, after: list[int]) -> Finding[bool]:
    """Return what a step that failed means. A link on the way is no directory and decides nothing.

    Without a root directory the process has ended, or hvprobe may not see it.
    """
    is_link = bool(after) and stat.S_ISLNK(os.fstat(after[-1]).st_mode)
    if is_link:
        return unknown(f"the folder of {name} in the pod is a symbolic link")
    if after and err.errno in (errno.ENOENT, errno.ENOTDIR):
        return Finding(value=False, text=f"the pod has no {name}")
    return unknown(f"{name} in the pod cannot be read: {os.strerror(err.errno or 0)}")


def _accessible(folder: ProcessFolder, name: str, way: list[int]) -> Finding[bool]:
    """Return whether the process may search these folders and open the device, which is last."""
    credentials = _credentials(folder)
    if credentials is None:
        return unknown("QEMU's user and groups cannot be read")
    folder.at("the mount of the device")
    if os.fstatvfs(way[-1]).f_flag & os.ST_NODEV:
        return Finding(value=False, text=f"{name} in the pod is on a mount without devices")
    found = os.fstat(way[-1])
    seen = (
        f"{name} in the pod has mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid} and "
        f"group {found.st_gid}; QEMU runs as {_names(credentials)}"
    )
    for fd in way:
        access = Access.READ_WRITE if fd == way[-1] else Access.SEARCH
        may = _may(folder, credentials, access, fd)
        if may is None:
            return unknown(f"an access control list or an unmapped user decides: {seen}")
        if not may:
            where = "" if fd == way[-1] else "a folder on the way is closed to QEMU: "
            return Finding(value=False, text=f"{where}{seen}")
    return Finding(value=True, text=seen)


def _may(folder: ProcessFolder, credentials: Credentials, access: Access, fd: int) -> bool | None:
    """Return whether the process has access to a file; None: more than its mode decides."""
    found = os.fstat(fd)
    owner = FileOwner(uid=found.st_uid, gid=found.st_gid, mode=found.st_mode)
    ids = {owner.uid, owner.gid, credentials.uid, credentials.gid, *credentials.groups}
    if NO_ID in ids and not _sees_every_id():
        return None
    # A list has entries for others than the owner, whose rights are in the mode.
    if owner.uid != credentials.uid and _has_access_list(folder, fd):
        return None
    return credentials.may(access, owner)


def _has_access_list(folder: ProcessFolder, fd: int) -> bool:
    """Return whether a file has an access control list, or may have one."""
    folder.at("an access control list")
    try:
        return bool(os.getxattr(f"/proc/self/fd/{fd}", _ACL))
    except OSError as err:
        return err.errno not in (errno.ENODATA, errno.EOPNOTSUPP)


def _credentials(folder: ProcessFolder) -> Credentials | None:
    files = (folder.read(name) for name in ("status", "uid_map", "gid_map"))
    return parse_credentials(*((raw or b"").decode(errors="replace") for raw in files))


def _names(credentials: Credentials) -> str:
    groups = sorted({credentials.gid, *credentials.groups})
    return f"user {credentials.uid}, group{'s' * (len(groups) > 1)} {', '.join(map(str, groups))}"


def _sees_every_id() -> bool:
    """Whether this process sees every user by its number: no user namespace hides any."""
    try:
        return Path("/proc/self/uid_map").read_text().split() == _EVERY_ID
    except OSError:
        return True  # the kernel has no user namespaces
