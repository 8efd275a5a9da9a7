# SPDX-License-Identifier: Apache-2.0
"""The modules of scripts/, which import each other as the interpreter finds them beside a script.

Owns the way to import one. Must not know what they do.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name: str) -> Any:  # noqa: ANN401 - the module is known only when the test runs
    """The module scripts/NAME.py."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))
    assert Path(str(module.__file__)).parent == SCRIPTS
    return module
