# SPDX-License-Identifier: Apache-2.0
"""EDGE: the wheel as an administrator installs it, and the real kubectl beside it.

Owns the virtual environment, which has the wheel and what it requires, and neither bcc nor this
checkout. Must not know any cluster.
"""

import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.support import helm_tools
from tests.support.deploy_render import ROOT

_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "LICENSES", "ebpf", "probes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """An installed wheel."""

    bin: Path
    """The folder of its commands and of its interpreter."""

    @property
    def path(self) -> str:
        """The PATH of an administrator: kubectl, the plugin, and the system's programs."""
        return f"{self.bin}:{helm_tools.kubectl().parent}:/usr/bin:/bin"


def install_plugin(work: Path) -> Plugin:
    """Build the wheel of this checkout and install it into an environment of its own.

    The environment finds the requirements where this interpreter has them, without a download.
    """
    tree, dist, home = work / "tree", work / "dist", work / "venv"
    tree.mkdir()
    # setuptools writes into the folder that it builds.
    copied = [str(ROOT / name) for name in _SOURCES if (ROOT / name).exists()]
    _run("cp", "-r", *copied, tree)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, tree)
    (wheel,) = dist.iterdir()
    venv.create(home, with_pip=False)
    python = home / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    _run(*pip, "--no-deps", "--no-index", wheel)
    (site,) = (home / "lib").glob("python*/site-packages")
    # A plain path: files of that folder that put a checkout on the path are not read from here.
    (site / "requirements.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return Plugin(bin=home / "bin")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
