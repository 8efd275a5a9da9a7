# SPDX-License-Identifier: Apache-2.0
"""EDGE: Debian packages of any suite and architecture, fetched without installing anything.

Owns private apt trees (package lists, an empty dpkg status, downloaded archives) in the cache, and
unpacking. apt verifies every archive against Debian's keyring. The machine's own apt state is
only read, for the mirror's address. Must not know what the packages are for.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vmtest.cache import cache_directory, locked
from vmtest.kernels import Architecture, Suite

MIRROR_VARIABLE = "HVPROBE_DEBIAN_MIRROR"
_KEYRINGS = tuple(
    Path("/usr/share/keyrings/debian-archive-keyring").with_suffix(suffix)
    for suffix in (".gpg", ".pgp")
)
_EXCLUDED = (
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/iso-codes/*",
    "./usr/share/xml/iso-codes/*",
    "./usr/share/icons/*",
    "./usr/share/gir-1.0/*",
    "./usr/share/bash-completion/*",
)


class BuildError(Exception):
    """A part of a guest could not be built. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AptTree:
    """A private apt world of one suite and one architecture."""

    suite: Suite
    architecture: Architecture
    directory: Path
    kind: str
    """What its lists are of: deb, packages; deb-src, their sources."""

    @property
    def config(self) -> Path:
        """The file that turns apt away from the machine's own state."""
        return self.directory / "apt.conf"

    @property
    def archives(self) -> Path:
        """Where downloaded packages lie."""
        return self.directory / "cache" / "archives"


def program_path() -> str:
    """Where programs are looked for. Users other than root lack the directory of kmod's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def run(command: Sequence[str | Path], *, what: str, stdin: str = "") -> str:
    """Run a command and return its stdout. Raises BuildError naming `what` and the last error."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            check=True,
            capture_output=True,
            text=True,
            input=stdin,
            env={
                **os.environ,
                "PATH": program_path(),
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
        )
    except FileNotFoundError as err:
        raise BuildError(f"{what}: {command[0]} is missing: install it") from err
    except subprocess.CalledProcessError as err:
        lines = [line for line in (err.stderr + err.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "Err:"))] or lines[-1:]
        raise BuildError(f"{what}: {command[0]}: {'; '.join(errors)[:600]}") from err
    return done.stdout


def debian_mirror() -> str:
    """The address of a Debian archive: HVPROBE_DEBIAN_MIRROR, else the one this machine uses."""
    given = os.environ.get(MIRROR_VARIABLE)
    if given:
        return given
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        what="finding this machine's Debian mirror",
    )
    for uri in listed.splitlines():
        if re.search(r"/debian/?$", uri):
            return uri
    raise BuildError(
        "no Debian mirror among this machine's apt sources: "
        f"set {MIRROR_VARIABLE} to the address of one"
    )


@contextlib.contextmanager
def apt_tree(suite: Suite, architecture: Architecture, *, kind: str = "deb") -> Iterator[AptTree]:
    """A tree with fresh lists, ours alone until the block ends."""
    name = f"apt-{suite.value}-{architecture.value}{kind.removeprefix('deb')}"
    with locked(name):
        directory = cache_directory() / name
        tree = AptTree(suite=suite, architecture=architecture, directory=directory, kind=kind)
        _refresh(tree)
        yield tree


def _refresh(tree: AptTree) -> None:
    """Write its configuration and fetch its lists."""
    suite, architecture, directory = tree.suite, tree.architecture, tree.directory
    keyring = next((path for path in _KEYRINGS if path.exists()), None)
    if keyring is None:
        raise BuildError("Debian's keyring is missing: install debian-archive-keyring")
    (directory / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (tree.archives / "partial").mkdir(parents=True, exist_ok=True)
    (directory / "status").write_text("")
    source = f"{tree.kind} [signed-by={keyring}] {debian_mirror()} {suite.value} main\n"
    (directory / "sources.list").write_text(source)
    # The hooks are cleared because they act on the machine itself (PackageKit, docker-clean);
    # the sandbox user cannot read a cache below a home directory.
    tree.config.write_text(
        f"""Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
APT::Architecture "{architecture.value}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture.value}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""
    )
    run(["apt-get", "-c", tree.config, "update"], what=f"package lists of {suite.value}")


def package_names(tree: AptTree, prefix: str) -> list[str]:
    """All package names of the tree that begin with `prefix`."""
    listed = run(["apt-cache", "-c", tree.config, "pkgnames", prefix], what=f"listing {prefix}*")
    return listed.split()


def download_only(tree: AptTree, packages: Iterable[str]) -> list[Path]:
    """Fetch exactly these packages, without what they depend on."""
    names = list(packages)
    listed = run(
        ["apt-get", "-c", tree.config, "download", "--print-uris", *names],
        what=f"finding {' '.join(names)}",
    )
    paths = _archive_paths(tree, listed)
    # `apt-get download` writes to the working directory; a configured one would be another's.
    run(
        ["env", "-C", tree.archives, "apt-get", "-c", tree.config, "download", *names],
        what=f"downloading {' '.join(names)}",
    )
    return paths


def download_source(suite: Suite, name: str, into: Path) -> Path:
    """Fetch a source package and give its original archive, without Debian's patches."""
    with apt_tree(suite, Architecture.AMD64, kind="deb-src") as tree:
        fetch: list[str | Path] = ["apt-get", "-c", tree.config, "source", "--download-only", name]
        run(["env", "-C", into, *fetch], what=f"the source of {name}")
    (archive,) = into.glob(f"{name}_*.orig.tar.*")
    return archive


def download_closure(tree: AptTree, packages: Sequence[str]) -> list[Path]:
    """Fetch these packages and everything that they depend on, down to the C library."""
    install: list[str | Path] = ["apt-get", "-c", tree.config, "install", "--yes"]
    what = f"packages of a {tree.suite.value} root"
    listed = run([*install, "--print-uris", *packages], what=what)
    run([*install, "--download-only", *packages], what=what)
    return _archive_paths(tree, listed)


def _archive_paths(tree: AptTree, print_uris: str) -> list[Path]:
    """`--print-uris` prints `'URI' FILE SIZE CHECKSUM` per package."""
    files = re.findall(r"^'[^']+' (\S+) \d+", print_uris, flags=re.MULTILINE)
    return [tree.archives / name for name in files]


def unpack(archives: Iterable[Path], root: Path) -> None:
    """Unpack packages into `root` without running their scripts; documentation stays out.

    Directory links of `root` (merged /usr) are kept where a package ships a directory.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda archive: _unpack_one(archive, root), archives):
            pass


def _unpack_one(archive: Path, root: Path) -> None:
    excludes = [f"--exclude={pattern}" for pattern in _EXCLUDED]
    extract = ["tar", "-x", "-C", str(root), "--keep-directory-symlink", *excludes]
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
    ) as source:
        done = subprocess.run(
            extract, stdin=source.stdout, check=False, capture_output=True, text=True
        )
    if source.returncode or done.returncode:
        raise BuildError(f"unpacking {archive.name}: {done.stderr.strip()[:300] or 'damaged'}")


def forget(archives: Iterable[Path]) -> None:
    """Delete archives that are unpacked: they are only weight."""
    for archive in archives:
        archive.unlink(missing_ok=True)
