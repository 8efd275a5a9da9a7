# SPDX-License-Identifier: Apache-2.0
"""Starts the program: ``hvprobe``, or ``python -m probes`` for a tree that is not installed.

Owns what the command may import: its own two packages from the folder that contains this file,
everything else from the interpreter's installation. Neither PYTHONPATH nor the working directory
counts, because others may control them. Therefore this file imports only what is already loaded.

An interpreter that was started in any other way is replaced by an isolated one (``python -I``). By
then PYTHONPATH has already had its effect before the first line of this file. So the installed
``hvprobe`` starts its interpreter with ``-I`` (scripts/isolate.sh), while a developer's tree is run
by ``PYTHONPATH=TREE python -m probes``.
"""

import os
import sys

_ISOLATED = """
import sys
from importlib.machinery import PathFinder
class Tree:
    folder = sys.argv.pop(1)
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, [cls.folder]) if name in ("ebpf", "probes") else None
sys.meta_path.insert(0, Tree)
from probes.__main__ import main
sys.exit(main())
"""


def kubectl() -> int:
    """Run ``hvprobe fleet``, which kubectl knows as its plugin ``kubectl hvprobe``."""
    sys.argv.insert(1, "fleet")
    return main()


def complete() -> int:
    """Complete a command line of ``kubectl hvprobe``, as kubectl asks for it."""
    sys.argv[1:1] = ["fleet", "__complete"]
    return main()


def main() -> int:
    """Run the command in an isolated interpreter. Returns the exit code."""
    if not sys.flags.isolated and sys.executable:
        tree = os.path.dirname(os.path.dirname(__file__))
        flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
        os.execv(  # noqa: S606 - the same interpreter, no shell
            sys.executable, [sys.executable, *flags, "-c", _ISOLATED, tree, *sys.argv[1:]]
        )
    from probes.command.cli import main as command

    return command(apart=True)


if __name__ == "__main__":
    sys.exit(main())
