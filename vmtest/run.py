# SPDX-License-Identifier: Apache-2.0
"""Runs one command in one kernel of vmtest, for debugging by hand.

    python -m vmtest.run --kernel 6.1 --command 'python3 -m vmtest.check_guest'

The guest's console, and with it the command's output, goes to stdout as it comes.
"""

import argparse
import sys
import threading
from dataclasses import replace
from pathlib import Path

from vmtest.apt import BuildError
from vmtest.build import BuiltGuest, build
from vmtest.by_name import UnknownNameError
from vmtest.cache import say
from vmtest.kernels import KERNELS, kernel_named
from vmtest.programs import build_programs
from vmtest.results import RESULTS, results_of
from vmtest.vm import CONSOLE, boot, unavailable

SELF_CHECK = "python3 -m vmtest.check_guest"


def main() -> int:
    """The exit status is the command's; 1 when the guest died, 2 when it could not be built."""
    arguments = _parser().parse_args()
    try:
        kernel = kernel_named(arguments.kernel)
        missing = unavailable(kernel.architecture)
        if missing:
            raise BuildError(missing)
        guest = replace(build(kernel), smp=arguments.smp)
    except (BuildError, UnknownNameError) as err:
        say(str(err))
        return 2
    if arguments.build_only:
        return 0
    with results_of(kernel.name, arguments.results) as results:
        exit_code = _boot_and_show(guest, results, arguments)
    say(f"{kernel.name}: exit code {exit_code}, results in {arguments.results / kernel.name}")
    return 1 if exit_code is None else exit_code


def _boot_and_show(guest: BuiltGuest, results: Path, arguments: argparse.Namespace) -> int | None:
    say(f"{guest.kernel.name}: booting {guest.release}")
    build_programs(guest.kernel.architecture, results / "bin")
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(results / CONSOLE, done))
    follower.start()
    try:
        result = boot(
            guest,
            arguments.command,
            results,
            deadline_s=arguments.deadline,
            environment=dict(pair.split("=", 1) for pair in arguments.env),
            kernel_arguments=arguments.append,
        )
    finally:
        done.set()
        follower.join()
    say(f"{guest.kernel.name}: ended after {result.duration_s:.0f} s")
    return result.exit_code


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(kernel.name for kernel in KERNELS)
    parser.add_argument("--kernel", default="6.1", help=f"one of {names} (default 6.1)")
    parser.add_argument("--command", default=SELF_CHECK, help="default: the self-check of vmtest")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--append", default="", help="more kernel arguments")
    parser.add_argument("--smp", default="2", metavar="CPUS", help="as QEMU's (default 2)")
    parser.add_argument("--deadline", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY")
    parser.add_argument("--build-only", action="store_true", help="fill the cache, boot nothing")
    return parser


def _follow(console: Path, done: threading.Event) -> None:
    """Copy the console to stdout while it grows; once more at the end for what is left."""
    position = 0
    while True:
        last = done.wait(0.2)
        if console.exists():
            with console.open("rb") as log:
                log.seek(position)
                fresh = log.read()
            position += len(fresh)
            sys.stdout.buffer.write(fresh)
            sys.stdout.flush()
        if last:
            return


if __name__ == "__main__":
    sys.exit(main())
