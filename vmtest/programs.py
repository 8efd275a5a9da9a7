# SPDX-License-Identifier: Apache-2.0
"""EDGE: the C programs of the kernel tests, compiled here for a guest's architecture.

Guests have no compiler: compiling under emulation takes longer than the tests. Owns only the
compiler call; must not know what the programs do.
"""

import shutil
from pathlib import Path

from vmtest.apt import BuildError, run
from vmtest.kernels import Architecture

_SOURCES = Path(__file__).resolve().parents[1] / "tests/support"
COMPILERS = {
    Architecture.AMD64: ("gcc", "gcc and libc6-dev"),
    Architecture.ARM64: (
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross",
    ),
}


def build_programs(architecture: Architecture, directory: Path) -> list[Path]:
    """Compile each C file of tests/support to a static program of its name in `directory`."""
    compiler, packages = COMPILERS[architecture]
    if shutil.which(compiler) is None:
        raise BuildError(f"{compiler} is missing: install {packages}")
    directory.mkdir(parents=True, exist_ok=True)
    built = []
    for source in sorted(_SOURCES.glob("*.c")):
        program = directory / source.stem
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
        run([compiler, *options, "-o", program, source], what=f"compiling {source.name}")
        built.append(program)
    return built
