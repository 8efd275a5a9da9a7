# SPDX-License-Identifier: Apache-2.0
"""EDGE: the project's Python packages as a directory for guests, copied from this environment.

Owns which packages a guest gets: exactly the versions that the tests run with here, so nothing is
downloaded and nothing differs between kernels but what the distribution must provide. Extension
modules stay behind, since they fit one Python and one architecture: a package that cannot do
without comes from the guest's distribution. Must not know how guests are booted.
"""

import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from vmtest.apt import BuildError
from vmtest.cache import made_once
from vmtest.kernels import Architecture, Suite
from vmtest.root import build_root, byte_compile

WANTED = ("hvprobe", "pytest", "pytest-timeout")
NOT_COPIED = ("kubernetes", "msgspec", "psutil")
"""kubernetes and msgspec need extension modules and are imported in cluster mode only, which guests
do not run; the distribution's psutil is in every root."""
_REPOSITORY = Path(__file__).resolve().parents[1]


def python_packages(suite: Suite) -> Path:
    """A directory to put on the module path of a guest with a root of this suite."""
    chosen = closure(site_packages(), WANTED)
    recipe = ["1", *sorted(f"{found.name}=={found.version}" for found in chosen)]

    def make(directory: Path) -> None:
        for found in chosen:
            _copy(found, directory)
        byte_compile(build_root(suite, Architecture.AMD64), directory, shown_as="/packages")

    return made_once(f"packages-{suite.value}", recipe, make)


def site_packages() -> Path:
    """Where this interpreter's virtual environment keeps packages; else the repository's .venv."""
    if sys.prefix != sys.base_prefix:
        return Path(sysconfig.get_path("purelib"))
    for found in sorted(_REPOSITORY.glob(".venv/lib/python3*/site-packages")):
        return found
    raise BuildError("there is no virtual environment to take Python packages from: make install")


def closure(site: Path, wanted: Iterable[str]) -> list[Distribution]:
    """The distributions of these names and all that they require, without NOT_COPIED.

    A requirement that is not installed was excluded by its own marker when pip resolved it.
    """
    installed = {_normal(found.name): found for found in distributions(path=[str(site)])}
    chosen: dict[str, Distribution] = {}
    pending = [_normal(name) for name in wanted]
    for name in pending:
        if name not in installed:
            raise BuildError(f"{name} is not installed in {site}: run make install-dev")
    while pending:
        name = pending.pop()
        if name in chosen or name in NOT_COPIED or name not in installed:
            continue
        chosen[name] = installed[name]
        pending += _required(installed[name].requires or ())
    return list(chosen.values())


def _required(requirements: Sequence[str]) -> list[str]:
    """`psutil<8,>=5.9.4` → `psutil`; what only an extra asks for is left out."""
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in requirements if "extra ==" not in line]
    return [_normal(name.group()) for name in names if name]


def _normal(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy(found: Distribution, target: Path) -> None:
    for file in found.files or ():
        # Programs (../../bin), byte code, extension modules, and paths into this machine.
        if ".." in file.parts or file.suffix in {".pyc", ".so", ".pth"}:
            continue
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(file.locate()), copy)
