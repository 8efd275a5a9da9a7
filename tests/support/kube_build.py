# SPDX-License-Identifier: Apache-2.0
"""EDGE: Kubernetes' own programs, compiled from Debian's source package.

Owns the download of source and compiler, which are not installed, and the compiled programs in the
cache. Debian ships neither kube-apiserver nor kubelet, but until 1.20 the source package of its
kubectl contained all of Kubernetes and its vendored dependencies. Must not know how a cluster is
made of the programs.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from vmtest.apt import apt_tree, download_only, download_source, forget, run, unpack
from vmtest.cache import made_once, say
from vmtest.kernels import Architecture, Suite

SOURCE = "kubernetes"
RELEASE = "v1.20.2"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
COMPILER = ("golang-1.15-go", "golang-1.15-src")
"""The compiler that Debian 11 used. Programs compiled by Go 1.18 or later crash, because the
vendored reflect2 relies on how older versions lay out maps."""
RUNTIME = ("containerd", "containernetworking-plugins", "etcd-server")
"""Packages of containerd, the network plugins that it calls, and the API server's store."""
_MAIN = "k8s.io/kubernetes"
_VERSION = "k8s.io/component-base/version"
_LINK_FLAGS = (
    f"-s -w -X {_VERSION}.gitVersion={RELEASE} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=20"
)
_OPENAPI_TAG = "+k8s:openapi-gen=true"
_NO_OPENAPI = re.compile(r"/(code-generator|sample-apiserver|testdata)/")


def runtime() -> Path:
    """The folder in which the packages of RUNTIME are unpacked."""

    def make(directory: Path) -> None:
        _fetch(Suite.BOOKWORM, RUNTIME, directory)

    return made_once("kubelet-runtime", RUNTIME, make)


def kubernetes() -> Path:
    """The directory of PROGRAMS. The first call compiles them, which takes minutes."""

    def make(directory: Path) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as work:
            _compile(Path(work), directory)

    return made_once("kubernetes", (RELEASE, _LINK_FLAGS, *PROGRAMS, *COMPILER), make)


def _fetch(suite: Suite, packages: tuple[str, ...], root: Path) -> None:
    root.mkdir(exist_ok=True)
    with apt_tree(suite, Architecture.AMD64) as tree:
        archives = download_only(tree, packages)
        unpack(archives, root)
        forget(archives)


def _compile(work: Path, programs: Path) -> None:
    """Fetch the source, generate the one file that the package lacks, and compile."""
    say(f"compiling Kubernetes {RELEASE}")
    _fetch(Suite.BULLSEYE, COMPILER, work / "compiler")
    tree = work / "path/src" / _MAIN
    tree.mkdir(parents=True)
    archive = download_source(Suite.BOOKWORM, SOURCE, work)
    run(["tar", "-x", "--strip-components=1", "-C", tree, "-f", archive], what="Kubernetes' source")
    go = _Go(work, tree)
    go.build(work / "openapi-gen", "./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
    go.call(
        *(work / "openapi-gen", "--logtostderr", "-O", "zz_generated.openapi"),
        *("-h", "hack/boilerplate/boilerplate.generatego.txt", "-r", work / "violations"),
        *("-i", ",".join(_packages_with_openapi(tree)), "-o", work / "path/src"),
        *("-p", f"{_MAIN}/pkg/generated/openapi"),
    )
    go.build(programs, *(f"./cmd/{name}" for name in PROGRAMS))


class _Go:
    """The unpacked compiler. It builds the source in a GOPATH, with modules switched off."""

    def __init__(self, work: Path, tree: Path) -> None:
        root = next((work / "compiler/usr/lib").glob("go-*"))
        settings = {
            "GOROOT": root,
            "GOPATH": work / "path",
            "GOCACHE": work / "cache",
            "GO111MODULE": "off",
            "CGO_ENABLED": "0",
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            # These override a user's own flags and settings file for the go command.
            "GOFLAGS": "",
            "GOENV": "off",
        }
        # PWD: Go derives the package's name from the path by which it was entered.
        variables = [f"PWD={tree}", *(f"{k}={v}" for k, v in settings.items())]
        self._env: list[str | Path] = ["env", "-C", tree, *variables]

    def call(self, *command: str | Path) -> None:
        run([*self._env, *command], what="compiling Kubernetes")

    def build(self, output: Path, *packages: str) -> None:
        """Build packages. output: the program to write, or an existing directory for several."""
        target = f"{output}/" if output.is_dir() else output
        self.call("go", "build", "-trimpath", "-ldflags", _LINK_FLAGS, "-o", target, *packages)


def _packages_with_openapi(tree: Path) -> list[str]:
    """The packages whose types the API server describes, which a tag in their source marks."""
    found: set[str] = set()
    for top in ("pkg", "cmd", "plugin", "staging/src/k8s.io"):
        for file in (tree / top).rglob("*.go"):
            package = file.parent.relative_to(tree).as_posix()
            if _NO_OPENAPI.search(f"/{package}/") or file.name.endswith("_test.go"):
                continue
            if _OPENAPI_TAG in file.read_text():
                found.add(package.replace("staging/src/", "vendor/", 1))
    return [f"{_MAIN}/{package}" for package in sorted(found)]


def missing() -> str | None:
    """The reason why this machine cannot compile and run the programs; None: it can."""
    if os.uname().machine != "x86_64":
        return "the packages of the cluster are fetched for amd64 only"
    for program in ("unshare", "nsenter", "ip", "openssl", "runc", "busybox"):
        if shutil.which(program) is None:
            return f"needs {program}: make test-image installs it"
    return None
