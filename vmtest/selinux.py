# SPDX-License-Identifier: Apache-2.0
"""EDGE: an SELinux policy for guests, made of Debian's packages and cached.

Owns how the policy is made: every module of selinux-policy-default, the module ``container`` of the
same source package, which Debian ships as source alone, and tests/platform/node.cil. The tools are
Debian's, unpacked like a guest's root, so nothing is installed. Must not know what runs under it.
"""

import bz2
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from vmtest.apt import BuildError, apt_tree, download_closure, download_only, forget, unpack
from vmtest.cache import made_once, say
from vmtest.kernels import Architecture, Suite

LOCAL_MODULE = Path(__file__).resolve().parents[1] / "tests" / "platform" / "node.cil"
POLICY = "policy"
"""The file that the kernel loads, in the directory that ``build_policy`` returns."""
SUITE = Suite.BOOKWORM
_RECIPE = "2"
"""Raise it when the way the policy is made changes."""
_TOOLS = ("checkpolicy", "m4", "policycoreutils", "secilc", "semodule-utils", "zstd")
_POLICIES = ("selinux-policy-default", "selinux-policy-dev", "selinux-policy-src")
_MODULES = "usr/share/selinux/default"
_HEADERS = "usr/share/selinux/devel/include"
_SOURCES = "usr/src/selinux-policy-src.tar.zst"
_CONTAINER = "selinux-policy-src/policy/modules/services/container.te"
_VERSION = "33"
"""Of the binary format: the newest of Linux 6.1."""
_DEFINED = (
    # As /usr/share/selinux/devel/include/build.conf has it: what Debian builds its modules with.
    *("enable_mcs", "distro_debian", "init_systemd", "direct_sysadm_daemon", "enable_ubac"),
    *("mls_num_sens=16", "mls_num_cats=1024", "mcs_num_cats=1024"),
)


def build_policy() -> Path:
    """A directory with the policy."""
    local = LOCAL_MODULE.read_text()

    def make(directory: Path) -> None:
        packages = directory / "packages"
        with apt_tree(SUITE, Architecture.AMD64) as tree:
            say("selinux: downloading")
            archives = [*download_closure(tree, _TOOLS), *download_only(tree, _POLICIES)]
            for merged in ("bin", "sbin", "lib", "lib64"):
                (packages / "usr" / merged).mkdir(parents=True, exist_ok=True)
                (packages / merged).symlink_to(f"usr/{merged}")
            unpack(archives, packages)
            forget(archives)
        say("selinux: compiling the policy")
        _compile(packages, local, directory / POLICY)
        for used in directory.iterdir():
            if used.name != POLICY:
                shutil.rmtree(used)

    return made_once("selinux", [_RECIPE, *_TOOLS, *_POLICIES, local], make)


def _compile(packages: Path, local: str, policy: Path) -> None:
    """Compile all modules to one policy."""
    work = policy.with_name("modules")
    work.mkdir()
    container = _container_package(packages, work)
    modules = {
        path.name.partition(".")[0]: bz2.decompress(path.read_bytes())
        for path in (packages / _MODULES).glob("*.pp.bz2")
    }
    for name, package in {**modules, "container": container}.items():
        (work / f"{name}.cil").write_bytes(_tool(packages, "libexec/selinux/hll/pp", given=package))
    (work / "node.cil").write_text(local)
    # -N: neverallow rules were checked when Debian built the modules. -D: each denial is logged.
    options = ("-M", "true", "-c", _VERSION, "-N", "-D")
    outputs = ("-o", policy, "-f", work / "contexts")
    _tool(packages, "bin/secilc", *options, *outputs, *sorted(work.glob("*.cil")))


def _container_package(packages: Path, work: Path) -> bytes:
    """The module ``container`` as a package, by the steps of the package's own Makefile."""
    sources = _tool(packages, "bin/zstd", "-dcq", packages / _SOURCES)
    with tarfile.open(fileobj=BytesIO(sources)) as archive:
        member = archive.extractfile(_CONTAINER)
        assert member
        (work / "container.te").write_bytes(member.read())
    headers = packages / _HEADERS
    support = sorted((headers / "support").glob("*.spt"))
    (work / "iferror.m4").write_text("ifdef(`__if_error',`m4exit(1)')\n")
    interfaces = sorted(headers.glob("*/*.if"))
    expanded = _tool(packages, "bin/m4", *support, *interfaces, work / "iferror.m4")
    (work / "interfaces.conf").write_bytes(
        b"divert(-1)\n" + expanded.replace(b"dollarsstar", b"$*") + b"divert\n"
    )
    given: list[str | Path] = [word for name in _DEFINED for word in ("-D", name)]
    given += ["-s", *support, work / "interfaces.conf", work / "container.te"]
    (work / "container.conf").write_bytes(_tool(packages, "bin/m4", *given))
    module, package = work / "container.mod", work / "container.pp"
    _tool(packages, "bin/checkmodule", "-M", "-m", work / "container.conf", "-o", module)
    _tool(packages, "bin/semodule_package", "-o", package, "-m", module)
    return package.read_bytes()


def _tool(packages: Path, program: str, *arguments: str | Path, given: bytes = b"") -> bytes:
    """Run a program of the packages by their own loader and libraries."""
    libraries = packages / "usr/lib/x86_64-linux-gnu"
    done = subprocess.run(
        [
            *(libraries / "ld-linux-x86-64.so.2", "--library-path", libraries),
            *(packages / "usr" / program, *arguments),
        ],
        input=given,
        check=False,
        capture_output=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise BuildError(f"the SELinux policy: {program}: {said[-1][:300]}")
    return done.stdout
