# SPDX-License-Identifier: Apache-2.0
"""Finds boots of platforms by their names. Must not know what the boots are."""

import os
from collections.abc import Mapping

from vmtest.platform_model import Boot
from vmtest.platforms import BOOTS

SELECTION_VARIABLE = "HVPROBE_PLATFORMS"
"""Names of boots, separated by commas, or ``all``; unset: none, because each takes minutes."""


class UnknownBootError(Exception):
    """A boot was asked for that the table does not hold."""


def boot_named(name: str) -> Boot:
    """The boot of that name."""
    for boot in BOOTS:
        if boot.name == name:
            return boot
    known = ", ".join(boot.name for boot in BOOTS)
    raise UnknownBootError(f"no boot of platforms is called {name!r}: take one of {known}")


def selected_boots(environ: Mapping[str, str] = os.environ) -> tuple[Boot, ...]:
    """The boots that HVPROBE_PLATFORMS names."""
    names = [name.strip() for name in environ.get(SELECTION_VARIABLE, "").split(",")]
    return BOOTS if "all" in names else tuple(boot_named(name) for name in names if name)
