# SPDX-License-Identifier: Apache-2.0
"""EDGE: opens the listening sockets. Must not know who connects."""

import errno
import os
import socket

from probes.serve.listen import Listen

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted, up to net.core.somaxconn."""

SEND_BUFFER_BYTES = 128 * 1024
"""Send buffer per connection, which otherwise grows to megabytes for a reader that stalls."""


class BindError(Exception):
    """The server cannot listen on the address. The message is one line: which, why, what to do."""


def open_listeners(listen: Listen) -> list[socket.socket]:
    """Listen on each address of the host. Raises BindError when it is in use, or there is none."""
    both = socket.has_dualstack_ipv6()
    host = listen.host or ("::" if both else "0.0.0.0")  # noqa: S104 - asked for
    listeners: list[socket.socket] = []
    why: str | None = None
    try:
        found = socket.getaddrinfo(host, listen.port, type=socket.SOCK_STREAM)
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            dual = both and address[0] == "::"
            try:
                listener = socket.create_server(
                    address, family=family, backlog=BACKLOG, dualstack_ipv6=dual
                )
            except OSError as err:
                why = os.strerror(err.errno or 0)
                # "localhost" often includes ::1 even where IPv6 is disabled.
                if err.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
            else:
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                listeners.append(listener)
    except OSError as err:  # socket.gaierror is one
        why = why or err.strerror
        while listeners:
            listeners.pop().close()
    if not listeners:
        raise BindError(f"cannot listen on {listen}: {why}; choose another with --listen")
    return listeners
