# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of real hooks, and the node as hvprobe sees it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.kernel_node import Node
from tests.support.kernel_world import build_kvmload
from tests.support.required import missing_for_guests, require


@pytest.fixture(scope="session", autouse=True)
def kernel_required() -> None:
    """Skips the tests where the machine cannot run them, or fails them where they are required."""
    require("kernel", missing_for_guests())


@pytest.fixture(scope="session")
def kvmload(kernel_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program kvmload."""
    given = os.environ.get("HVPROBE_KVMLOAD")
    return Path(given) if given else build_kvmload(tmp_path_factory.mktemp("kvmload"))


@pytest.fixture(scope="module")
def node(kernel_required: None) -> Iterator[Node]:
    """The node, with hooks that are attached before the module's tests start any process."""
    with Node() as watching:
        watching.report()
        yield watching


@pytest.fixture
def new_node(kernel_required: None) -> Iterator[Callable[[], Node]]:
    """A function that attaches another set of hooks."""
    opened: list[Node] = []

    def attach() -> Node:
        opened.append(Node())
        return opened[-1]

    yield attach
    for node in opened:
        node.close()
