# SPDX-License-Identifier: Apache-2.0
"""EDGE: shares one examination of the node among concurrent requests and bounds how long they wait.

An examination is what ``hvprobe doctor`` shows. It reads more of the node than a refresh, so one
runs at a time and its result is kept for a while, however many clients there are. Must not know
what is examined.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from probes.report.model import NodeReport

KEPT_FOR_S = 10.0
"""How long requests share the result of an examination."""
EXAMINATION_DEADLINE_S = 5.5
"""How long a request waits. Reading why a node has no KVM may take 5 s."""


class Examiner:
    """Runs one examination at a time, in a thread of its own.

    All methods run on one event loop. An examination that hangs delays its requests by the
    deadline; until it ends, no second one starts.
    """

    def __init__(self, examine: Callable[[NodeReport], dict[str, object]]) -> None:
        """Take results from examine()."""
        self._examine = examine
        self._pending: asyncio.Future[dict[str, object]] | None = None
        self._begun_s = float("-inf")

    async def examined(self, report: NodeReport) -> dict[str, object] | None:
        """Return a result at most KEPT_FOR_S old; None: there is none in time.

        Raises what the examination raised.
        """
        now_s = time.monotonic()
        running = self._pending is not None and not self._pending.done()
        if not running and now_s - self._begun_s >= KEPT_FOR_S:
            self._begun_s = now_s
            self._pending = self._begin(report)
        if self._pending is None:
            return None
        left_s = self._begun_s + EXAMINATION_DEADLINE_S - now_s
        await asyncio.wait({self._pending}, timeout=max(0.0, left_s))
        return self._pending.result() if self._pending.done() else None

    def _begin(self, report: NodeReport) -> "asyncio.Future[dict[str, object]]":
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[dict[str, object]] = loop.create_future()
        # Retrieved here, because the requests that wait for it may be gone.
        ended.add_done_callback(lambda future: future.exception())

        def work() -> None:
            result: dict[str, object] = {}
            failure: BaseException | None = None
            try:
                result = self._examine(report)
            except BaseException as err:  # noqa: BLE001 - raised again on the event loop
                failure = err
            with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits
                loop.call_soon_threadsafe(record, result, failure)

        def record(result: dict[str, object], failure: BaseException | None) -> None:
            if failure is not None:
                ended.set_exception(failure)
            else:
                ended.set_result(result)

        # A daemon thread, for which the interpreter does not wait at its end.
        threading.Thread(target=work, name="examine", daemon=True).start()
        return ended
