# SPDX-License-Identifier: Apache-2.0
"""Every source file begins with an SPDX line that names its licence."""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL_LICENCES = "GPL-2.0-only OR Apache-2.0"
LICENCE_BY_SUFFIX = {
    ".c": f"/* SPDX-License-Identifier: {KERNEL_LICENCES} */",
    ".h": f"/* SPDX-License-Identifier: {KERNEL_LICENCES} */",
    ".py": "# SPDX-License-Identifier: Apache-2.0",
    ".sh": "# SPDX-License-Identifier: Apache-2.0",
}
NOT_SOURCES = {"build", "dist", "node_modules", "results", "venv", "__pycache__"}
"""Folders that builds and tests write, as in .gitignore. Hidden folders hold no sources either."""


def sources() -> Iterator[Path]:
    """The source files of the repository."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(
            name for name in folders if name not in NOT_SOURCES and not name.startswith(".")
        )
        for name in files:
            if Path(name).suffix in LICENCE_BY_SUFFIX:
                yield Path(folder, name)


def names_its_licence(path: Path) -> bool:
    """Whether the first line, or the one after a shebang, is the SPDX line of the file's kind."""
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#!"):
        del lines[0]
    return lines[:1] == [LICENCE_BY_SUFFIX[path.suffix]]


def test_each_source_file_names_its_licence() -> None:
    """Python and shell files name Apache-2.0; C files name it or, as an alternative, GPL-2.0."""
    found = list(sources())
    assert {path.suffix for path in found} == LICENCE_BY_SUFFIX.keys()
    assert [str(path.relative_to(ROOT)) for path in found if not names_its_licence(path)] == []


def test_the_licence_texts_are_present() -> None:
    """The text of each licence that a source file names is in the repository."""
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSES/GPL-2.0-only.txt").read_text()
