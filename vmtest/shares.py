# SPDX-License-Identifier: Apache-2.0
"""EDGE: the folders that a guest sees, by 9p or by virtiofs.

Owns QEMU's options for them, and the processes that serve them where QEMU itself does not. Must not
know what is in the folders.
"""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vmtest.apt import BuildError
from vmtest.kernels import Transport

WRITABLE = "results"
"""The tag of the only folder that a guest may write to."""
_VIRTIOFSD = tuple(map(Path, ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")))
"""Part of QEMU until 7.2, later a package of its own."""
_START_S = 20.0


@contextlib.contextmanager
def served(
    transport: Transport, folders: Mapping[str, Path], *, memory_mib: int
) -> Iterator[list[str]]:
    """Serve folders by tag until the block ends; QEMU's options for them."""
    if transport is Transport.P9:
        yield _by_9p(folders)
        return
    with contextlib.ExitStack() as running:
        place = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="shares-")))
        # The processes that serve use the guest's memory.
        memory = f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"
        options = ["-object", memory, "-machine", "memory-backend=memory"]
        for tag, folder in folders.items():
            socket = place / tag
            running.enter_context(_virtiofsd(folder, socket, cached=tag != WRITABLE))
            options += [
                *("-chardev", f"socket,id={tag},path={socket}"),
                *("-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"),
            ]
        yield options


def _by_9p(folders: Mapping[str, Path]) -> list[str]:
    options: list[str] = []
    for tag, path in folders.items():
        access = "" if tag == WRITABLE else ",readonly=on"
        options += [
            *("-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{access}"),
            *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
        ]
    return options


@contextlib.contextmanager
def _virtiofsd(folder: Path, socket: Path, *, cached: bool) -> Iterator[None]:
    """Run the process that serves one folder at a socket."""
    cache = "always" if cached else "none"
    command = [
        # It dies with this process, even if this process is killed.
        *("setpriv", "--pdeathsig", "KILL", "--", str(virtiofsd())),
        *(f"--socket-path={socket}", "-o", f"source={folder}", "-o", f"cache={cache}"),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end_s = time.monotonic() + _START_S
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > end_s:
                    raise BuildError(f"virtiofsd does not serve {folder}: it needs root")
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def virtiofsd() -> Path:
    """The program. Raises BuildError where there is none."""
    found = next(filter(Path.exists, _VIRTIOFSD), None)
    if found is None:
        raise BuildError("virtiofsd is missing: install qemu-system-common or virtiofsd")
    return found
