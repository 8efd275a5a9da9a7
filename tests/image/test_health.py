# SPDX-License-Identifier: Apache-2.0
"""The image's own health check, run as an engine runs it: in the container, by its exit code."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.deploy_render import rendered
from tests.support.image_build import Image
from tests.support.image_container import Container, running
from tests.support.kernel_world import wait_for
from tests.support.required import missing_for_guests, require

pytestmark = pytest.mark.timeout(900)
Json = dict[str, Any]


def healthy(agent: Container, image: Image) -> bool:
    """What the engine makes of the check: 0 is healthy, all else is not."""
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    return agent.execute(*command).returncode == 0


def test_tells_a_live_agent_from_a_hung_one(image: Image, crio_seccomp: Json) -> None:
    """Healthy while the agent serves, not while it hangs, and healthy once it goes on."""
    require("image", missing_for_guests())
    manifest = rendered("capabilities").one("DaemonSet")
    with running(image, manifest, crio_seccomp, own_network=True) as agent:
        tgid = agent.main_tgid()
        assert healthy(agent, image)
        os.kill(tgid, signal.SIGSTOP)
        try:
            stat = Path(f"/proc/{tgid}/stat")
            wait_for(lambda: ") T " in stat.read_text(), "the agent is stopped")
            assert not healthy(agent, image)
        finally:
            os.kill(tgid, signal.SIGCONT)
        wait_for(lambda: healthy(agent, image), "the agent goes on")


def test_tells_that_nobody_listens(image: Image, crio_seccomp: Json) -> None:
    """Not healthy where nothing serves at the image's port."""
    require("image", missing_for_guests())
    elsewhere = {"HVPROBE_LISTEN": "127.0.0.1:9748"}
    manifest = rendered("capabilities").one("DaemonSet")
    with running(image, manifest, crio_seccomp, own_network=True, environment=elsewhere) as agent:
        assert not healthy(agent, image)
