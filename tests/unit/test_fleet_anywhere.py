# SPDX-License-Identifier: Apache-2.0
"""``kubectl hvprobe`` runs on an administrator's machine: without root, BPF, /proc or Linux."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = """
import builtins, importlib.abc, io, json, os, socket, sys

OURS = ("ebpf", "probes")
ABSENT = {"bcc", "fcntl", "resource", "termios", "psutil"}
LINUX_ONLY = {
    "ebpf.session", "ebpf.programs", "ebpf.maps", "ebpf.bpf_syscall", "ebpf.clock", "ebpf.loader",
    "ebpf.tracefs", "ebpf.privileges", "ebpf.btf", "probes.host.reader", "probes.host.features",
    "probes.host.host_files", "probes.host.process_reader", "probes.command.agent",
    "probes.serve.http.server", "probes.vmi.kube.watch",
}

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        importer = frame.f_globals.get("__name__", "") if frame else ""
        ours = importer.partition(".")[0] in OURS
        if name in LINUX_ONLY or name == "bcc" or (ours and name in ABSENT):
            raise ImportError(f"{importer} imports {name}")
        return None

def forbid(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        name = os.fsdecode(args[0])
        if name.startswith(("/proc", "/sys/")):
            os.write(2, f"opened {name}\\n".encode())
            os._exit(99)
    if event == "ctypes.dlsym" and args[1] in ("syscall", "prctl"):
        os._exit(98)

for name in ("TCP_KEEPIDLE", "SO_BINDTODEVICE", "AF_NETLINK"):
    if hasattr(socket, name):
        delattr(socket, name)
socket.TCP_KEEPALIVE = socket.TCP_KEEPINTVL  # what macOS has instead
for name in ("pidfd_open", "memfd_create", "sched_getaffinity", "geteuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ABSENT & set(sys.modules):
    del sys.modules[name]
import multiprocessing, rich.console, urllib.request, urllib3  # look at the real platform
multiprocessing.cpu_count = lambda: 2
sys.platform = "darwin"
sys.meta_path.insert(0, Forbid())
sys.addaudithook(forbid)
from probes.command.cli import main
code = main(["fleet", *sys.argv[1:]])
sys.stdout.flush()
sys.stderr.write(json.dumps(sorted(name for name in sys.modules if name.startswith(OURS))))
sys.exit(code)
"""
REPORT = {
    "schema": "hvprobe/v1",
    "version": "0.1.0",
    "vmis": [
        {"namespace": "default", "name": "alpha", "hypervisor_type": "kvm", "verified": True,
         "vcpu_exits_per_second": 41.4}
    ],
}  # fmt: skip
POD = {
    "metadata": {"namespace": "hvprobe", "name": "hvprobe-n1"},
    "spec": {"nodeName": "n1"},
    "status": {"phase": "Running"},
}
ANSWERS = {
    "/api/v1/namespaces/hvprobe/pods": {"metadata": {"resourceVersion": "1"}, "items": [POD]},
    "/apis/kubevirt.io/v1/virtualmachineinstances": {
        "metadata": {"resourceVersion": "1"},
        "items": [],
    },
    "/api/v1/namespaces/hvprobe/pods/hvprobe-n1:9747/proxy/snapshot": REPORT,
}


class Api(BaseHTTPRequestHandler):
    """As little of an API server as the command needs."""

    def do_GET(self) -> None:
        found = ANSWERS.get(self.path.partition("?")[0])
        body = json.dumps(found or {"kind": "Status", "message": "not found"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "users": [{"name": "admin", "user": {"token": "secret"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    }
    file = tmp_path / "config"
    file.write_text(json.dumps(config))
    yield file
    server.shutdown()
    server.server_close()
    thread.join()


def run(kubeconfig: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *words],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(kubeconfig.parent),
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )


def test_it_shows_a_cluster_where_there_is_no_linux(kubeconfig: Path) -> None:
    """It imports nothing of ours that needs Linux, no bcc, and opens nothing of /proc and /sys."""
    done = run(kubeconfig)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert last == "1 VM: 1 kvm; 1 of 1 node answered"
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "probes.fleet.reading" in modules
    assert not {name for name in modules if name.startswith("probes.serve.http")}


@pytest.mark.parametrize("words", [["--help"], ["vmis", "--help"], ["why", "--help"]])
def test_help_where_there_is_no_linux(kubeconfig: Path, words: list[str]) -> None:
    """Help is printed and has examples."""
    done = run(kubeconfig, *words)
    assert done.returncode == 0, done.stderr
    assert "examples:\n  kubectl hvprobe" in done.stdout


def test_a_progress_bar_is_on_a_terminal_only(kubeconfig: Path) -> None:
    """On a terminal stderr shows the progress and removes it; stdout has only data."""
    assert "asking nodes" not in run(kubeconfig).stderr
    screen, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "probes", "fleet", "-o", "json"],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(kubeconfig.parent),
            "TERM": "xterm",
        },
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
        timeout=100,
    )
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(screen, 65536):
            seen += piece
    os.close(screen)
    assert b"asking nodes" in seen
    assert json.loads(done.stdout)["summary"]["kvm"] == 1


def test_the_plugin_is_the_command(kubeconfig: Path) -> None:
    """``kubectl-hvprobe ARGUMENTS`` is ``hvprobe fleet ARGUMENTS``, in an isolated interpreter."""
    program = "import sys; from probes.__main__ import kubectl; sys.exit(kubectl())"
    done = subprocess.run(
        [sys.executable, "-c", program, "-o", "csv"],
        cwd=ROOT,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "KUBECONFIG": str(kubeconfig),
            "HOME": "/nonexistent",
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.startswith("namespace,name,node,type,verified,exits_per_second,cause")
    assert row.startswith("default,alpha,n1,kvm,yes,41,")
