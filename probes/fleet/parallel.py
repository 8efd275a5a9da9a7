# SPDX-License-Identifier: Apache-2.0
"""EDGE: does many pieces of work at the same time, but never more than a given number.

Must not know what is done.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_parallel(
    jobs: Sequence[_Job],
    work: Callable[[_Job], _Result],
    *,
    parallel: int,
    on_done: Callable[[], None] = lambda: None,
) -> list[_Result]:
    """Return the results of work for each job, in the order of the jobs.

    on_done is called in this thread after each. An exception of work is raised here; what has begun
    is then left behind, in threads for which the interpreter does not wait at its end.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, _Result | BaseException]] = queue.SimpleQueue()
    for number in range(len(jobs)):
        todo.put(number)

    def run() -> None:
        while True:
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, work(jobs[number])))
            except BaseException as err:  # noqa: BLE001 - raised again by the caller
                done.put((number, err))

    for _ in range(min(parallel, len(jobs))):
        threading.Thread(target=run, name="fleet", daemon=True).start()
    results: dict[int, _Result] = {}
    while len(results) < len(jobs):
        number, result = done.get()
        if isinstance(result, BaseException):
            raise result
        results[number] = result
        on_done()
    return [results[number] for number in range(len(jobs))]
