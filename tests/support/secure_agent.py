# SPDX-License-Identifier: Apache-2.0
"""The real agent behind TLS with client certificates, and Prometheus's configuration to scrape it.

Must not know rules, queries or guests.
"""

import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.certificates import Authority, MountedSecret, Pair
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import DEADLINE_S
from tests.support.podmonitor import Pod, listed, scrape_job


class Keys:
    """A CA, the agent's files as a mounted Secret, and a scraper's certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority", "hvprobe test CA")
        self.scraper: Pair = self.authority.issue("scraper")
        self.secret = MountedSecret(folder / "secret")
        self._issued = 0
        self.served = self.renew()

    def renew(self) -> bytes:
        """Publish a new pair, as cert-manager does; its certificate in DER."""
        self._issued += 1
        pair = self.authority.issue(f"agent-{self._issued}")
        self.files = self.secret.publish(pair, self.authority.cert)
        self.served = ssl.PEM_cert_to_DER_cert(pair.cert.read_text())
        return self.served

    def spoil(self) -> None:
        """Publish a key that is not the certificate's."""
        cert, key = self.authority.issue("one").cert, self.authority.issue("other").key
        self.secret.publish(Pair(cert=cert, key=key), self.authority.cert)


class SecureAgent(Agent):
    """``hvprobe agent`` that lets in only whom the CA knows."""

    def __init__(self, keys: Keys, node: str, *, port: int = 0) -> None:
        self._context = keys.authority.client_context(keys.scraper)
        files = keys.files
        super().__init__(
            *("--standalone", "--vcpu-stats", "--node", node, "--listen", f"127.0.0.1:{port}"),
            *("--tls-cert", str(files.cert), "--tls-key", str(files.key)),
            *("--tls-client-ca", str(files.client_ca)),
        )

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> str:
        with urllib.request.urlopen(
            self.url + path, timeout=DEADLINE_S, context=self._context
        ) as answer:
            body: bytes = answer.read()
            return body.decode()

    def shown_certificate(self) -> bytes:
        """What a client that connects now is shown, in DER."""
        with (
            socket.create_connection(("127.0.0.1", self.port), DEADLINE_S) as sock,
            self._context.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
        ):
            return tls.getpeercert(binary_form=True) or b""


def scrape_config(keys: Keys, port: int, node: str) -> dict[str, Any]:
    """The scrape job of deploy/monitoring, for one agent, over TLS with a client certificate."""
    pod = Pod(name=f"hvprobe-{node}", node=node, address=f"127.0.0.1:{port}")
    return {
        **scrape_job(listed([pod]), interval="1s"),
        "scheme": "https",
        "tls_config": {
            "ca_file": str(keys.authority.cert),
            "cert_file": str(keys.scraper.cert),
            "key_file": str(keys.scraper.key),
            "min_version": "TLS12",
        },
    }
