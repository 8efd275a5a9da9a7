# SPDX-License-Identifier: Apache-2.0
"""EDGE: limits how long functions, commands and processes may take.

A read of /proc can block in the kernel for as long as a tenant likes, and not even SIGKILL ends a
thread that sleeps there uninterruptibly.

There are three means. ``within`` runs a function in a thread and stops waiting for it, for a
command that has more to do. ``apart`` runs a command in a process of its own, because a thread that
no signal ends keeps its process alive, so the user must wait for another one. ``end_after`` limits
how long a process takes to stop. Must not know what is run.
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

REFRESH_DEADLINE_S = 10.0
"""How long a command waits for one refresh. A refresh of a thousand VMs takes a fiftieth of a
second."""
COMMAND_DEADLINE_S = 240.0
"""How long a command that refreshes only once may take. Its parts have deadlines that add up to
less."""
STOP_DEADLINE_S = 8.0
"""How long stopping the agent may take. Kubernetes kills it after 10 s (deploy/base)."""
_STOP_POLL_S = 0.05
_END_WAIT_S = 1.0
"""How long to wait for the end of a process that has finished its work."""
_PR_SET_PDEATHSIG = 1

_T = TypeVar("_T")


class RefreshTimeoutError(Exception):
    """A refresh has not ended in time.

    The message is one line: what and why.
    """


class StoppedError(Exception):
    """The wait ended because the command is to end."""


def within(
    work: Callable[[], _T], *, deadline_s: float, stopped: Callable[[], bool] = lambda: False
) -> _T:
    """Return or raise what work() does; it runs in a thread that is left behind if it hangs.

    Raises RefreshTimeoutError at the deadline, and StoppedError soon after stopped() returns True.
    """
    done = threading.Event()
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as err:  # noqa: BLE001 - raised again by the caller
            errors.append(err)
        done.set()

    # A daemon thread, for which the interpreter does not wait at its end.
    threading.Thread(target=run, name="refresh", daemon=True).start()
    end_s = time.monotonic() + deadline_s
    while not done.wait(_STOP_POLL_S):
        if stopped():
            raise StoppedError
        if time.monotonic() >= end_s:
            raise RefreshTimeoutError(
                f"the refresh has not finished within {deadline_s:g} s: a file in /proc blocks "
                "its reader, or the node is overloaded; try again, and see the agent's log"
            )
    if errors:
        raise errors[0]
    return results[0]


def end_after(seconds: float, log: logging.Logger) -> None:
    """End this process with exit code 1 unless it ends by itself in time."""

    def end() -> None:
        time.sleep(seconds)
        log.error("shutdown has not finished within %g s: exiting now", seconds)
        os._exit(1)

    threading.Thread(target=end, name="end", daemon=True).start()


def apart(work: Callable[[], int], *, deadline_s: float) -> int:
    """Run a command in a process of its own.

    Returns its exit code, or 1 with a line if it never ends. Both processes end together: the
    command's process ends when this one does, for any reason, and signals end this one at once, as
    they end any program that does not handle them.
    """
    _flush()
    answer, exit_code_fd = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if child == 0:
        os.close(answer)
        _run_and_answer(work, exit_code_fd, parent)
    os.close(exit_code_fd)
    ended = os.pidfd_open(child)
    ready = _is_readable(answer, deadline_s)
    said = os.read(answer, 1) if ready else b""
    if not ready:
        os.kill(child, signal.SIGKILL)
        return _fail(
            f"no answer within {deadline_s:g} s; the process that reads the node is left behind"
        )
    # Once it has sent its exit code, a thread that cannot end may keep it alive; it is then left
    # behind.
    if not _is_readable(ended, _END_WAIT_S if said else None):
        return said[0]
    _, status = os.waitpid(child, 0)
    if said:
        return said[0]
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return _fail(f"the process that reads the node was ended by {signal.Signals(-code).name}")
    return code


def _is_readable(fd: int, seconds: float | None) -> bool:
    """Wait until a descriptor of any number is readable; None: for ever. Return whether it is."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))


def _run_and_answer(work: Callable[[], int], exit_code_fd: int, parent: int) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent has already ended
        os._exit(1)
    code = 1
    try:
        code = work()
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else 1
    except BaseException:  # noqa: BLE001 - any exception is reported as Python would report it
        sys.excepthook(*sys.exc_info())
    _flush()
    # A thread that cannot end would keep them open, and with them a reader that waits for their
    # end.
    for standard in {0, 1, 2} - {exit_code_fd}:
        with contextlib.suppress(OSError):
            os.close(standard)
    with contextlib.suppress(OSError):
        os.write(exit_code_fd, bytes([code]))
    os._exit(code)


def _flush() -> None:
    """Flush the output. A stream may be None or its descriptor closed by the caller."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _fail(line: str) -> int:
    print(f"hvprobe: {line}", file=sys.stderr)  # noqa: T201 - the line the user gets
    return 1
