# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus server on loopback, for as long as a ``with`` block lasts.

Owns the process: its data folder, its port (chosen by the kernel, read from the server's log) and
its end, also when the test itself is killed. Must not know what is scraped.
"""

import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_ADDRESS = re.compile(r'msg="Listening on" address=(\S+)')


def missing_programs() -> list[str]:
    """Programs that a test with Prometheus needs and this machine does not have."""
    return [name for name in ("prometheus", "promtool", "setpriv") if shutil.which(name) is None]


@contextmanager
def running_prometheus(
    folder: Path, config: dict[str, Any], *, deadline_s: float = 30
) -> Iterator[str]:
    """Start Prometheus with ``config``, wait until it is ready, yield its URL, end it.

    ``folder`` takes the configuration, the data and the log (``prometheus.log``).
    """
    config_file = folder / "prometheus.yml"
    config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    log = folder / "prometheus.log"
    command = [
        # The server ends with this process, even if that is killed.
        *("setpriv", "--pdeathsig", "KILL"),
        "prometheus",
        f"--config.file={config_file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield _wait_until_ready(process, log, time.monotonic() + deadline_s)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path, end: float) -> str:
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        address = _ADDRESS.search(log.read_text(encoding="utf-8"))
        if address and _is_ready(f"http://{address[1]}"):
            return f"http://{address[1]}"
        time.sleep(0.05)
    raise AssertionError(f"Prometheus did not become ready; its log:\n{log.read_text()}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as err:
        err.close()
        return False
    except (urllib.error.URLError, ConnectionError):
        return False
