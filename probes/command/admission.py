# SPDX-License-Identifier: Apache-2.0
"""Composes what decides by a request's token whether the agent answers it.

Owns that there is no such thing without the flag. Must not know how a token is reviewed.
"""

import logging

from probes.command.flags import Authorizing
from probes.command.settings import AgentSettings
from probes.serve.routes import Gate
from probes.vmi.kube.credentials import InCluster, Kubeconfig

log = logging.getLogger(__name__)


def gate_of(settings: AgentSettings, config: InCluster | Kubeconfig | None) -> Gate | None:
    """Return what decides by the token; None: tokens do not count.

    config are the credentials for the API server; inputs.py has checked that the flag has some.
    """
    if settings.authorization is not Authorizing.KUBERNETES or config is None:
        return None
    from probes.serve.authorization import Authorization  # noqa: PLC0415 - only with the flag
    from probes.vmi.kube.reviewer import Reviewer  # noqa: PLC0415 - the watch has loaded the rest

    if settings.tls is None:
        log.warning(
            "clients send their tokens unencrypted, because there is no TLS: set --tls-cert and "
            "--tls-key"
        )
    return Authorization(Reviewer(config).review, log=log).refusal
