# SPDX-License-Identifier: Apache-2.0
"""The locks of Python packages, as tests read them."""

from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {
    "python_version": "3.13",
    "python_full_version": "3.13.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
"""What markers may ask of the image's interpreter. The machine is that of the test."""


def requirements(name: str) -> list[Requirement]:
    """Each package of a lock with its version."""
    return [
        Requirement(line.removesuffix(" \\"))
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith(("#", " "))
    ]


def pinned_in_image() -> dict[str, str]:
    """Version by name of what requirements.lock has for the image."""
    return {
        found.name: str(found.specifier).removeprefix("==")
        for found in requirements("requirements.lock")
        if found.marker is None or found.marker.evaluate(IMAGE)
    }
