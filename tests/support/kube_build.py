# SPDX-License-Identifier: Apache-2.0
"""EDGE: Kubernetes' own programs, compiled from Debian's source package.

Owns fetching source and compiler without installing them, and the compiled programs in the cache.
Debian ships no kube-apiserver and no kubelet, but the source package of kubectl was all of
Kubernetes, with what it vendors, until 1.20. Must not know how a cluster is made of them.
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
"""What Debian 11 built it with. What 1.18 and later compile of it crashes: the reflect2 it vendors
knows how older ones lay out maps."""
RUNTIME = ("containerd", "containernetworking-plugins", "etcd-server")
"""containerd, the network plugins it calls, and the API server's store."""
_MAIN = "k8s.io/kubernetes"
_VERSION = "k8s.io/component-base/version"
_LINK_FLAGS = (
    f"-s -w -X {_VERSION}.gitVersion={RELEASE} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=20"
)
_OPENAPI_TAG = "+k8s:openapi-gen=true"
_NO_OPENAPI = re.compile(r"/(code-generator|sample-apiserver|testdata)/")


def runtime() -> Path:
    """Root of the unpacked packages of RUNTIME."""

    def make(directory: Path) -> None:
        _fetch(Suite.BOOKWORM, RUNTIME, directory)

    return made_once("kubelet-runtime", RUNTIME, make)


def kubernetes() -> Path:
    """The directory of PROGRAMS. Compiling them takes minutes, once."""

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
    """Fetch, generate the one file that the source package leaves out, compile."""
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
    """The unpacked compiler, in a GOPATH: the source is older than its own use of modules."""

    def __init__(self, work: Path, tree: Path) -> None:
        root = next((work / "compiler/usr/lib").glob("go-*"))
        settings = {
            "GOROOT": root,
            "GOPATH": work / "path",
            "GOCACHE": work / "cache",
            "GO111MODULE": "off",
            "CGO_ENABLED": "0",
            "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
            # What a person may have set of the go command: words, and a file of settings.
            "GOFLAGS": "",
            "GOENV": "off",
        }
        # PWD: Go tells the package's name by the path it was entered by.
        variables = [f"PWD={tree}", *(f"{k}={v}" for k, v in settings.items())]
        self._env: list[str | Path] = ["env", "-C", tree, *variables]

    def call(self, *command: str | Path) -> None:
        run([*self._env, *command], what="compiling Kubernetes")

    def build(self, output: Path, *packages: str) -> None:
        """output: a program, or a directory that is there."""
        target = f"{output}/" if output.is_dir() else output
        self.call("go", "build", "-trimpath", "-ldflags", _LINK_FLAGS, "-o", target, *packages)


def _packages_with_openapi(tree: Path) -> list[str]:
    """Packages whose types the API server describes: those that ask for it in their source."""
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
    """Why they cannot be compiled and run here; None: they can."""
    if os.uname().machine != "x86_64":
        return "the packages it is made of are fetched for amd64 only"
    for program in ("unshare", "nsenter", "ip", "openssl", "runc", "busybox"):
        if shutil.which(program) is None:
            return f"needs {program}: make test-image installs it"
    return None
