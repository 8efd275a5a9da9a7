# SPDX-License-Identifier: Apache-2.0
"""The manifests as kustomize renders them: text, and objects by kind and name.

``python -m tests.support.deploy_render`` writes what is rendered now to tests/golden/deploy, for
a look and a commit.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.deploy_tools import kustomize

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/deploy"
OVERLAYS = ROOT / "deploy/overlays"
NAMES: Sequence[str] = sorted(path.name for path in OVERLAYS.iterdir() if path.is_dir())
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One overlay's output."""

    text: str
    objects: tuple[Json, ...]

    def of_kind(self, kind: str) -> list[Json]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str) -> Json:
        """The only object of a kind."""
        (found,) = self.of_kind(kind)
        return found

    @property
    def pod(self) -> Json:
        """The pod's specification."""
        spec: Json = self.one("DaemonSet")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Json:
        """The pod's only container."""
        containers: list[Json] = self.pod["containers"]
        (found,) = containers
        return found


@cache
def rendered(overlay: str) -> Rendered:
    """What `kustomize build deploy/overlays/NAME` prints."""
    return rendered_at(OVERLAYS / overlay)


def rendered_at(directory: Path) -> Rendered:
    """The same for any kustomization."""
    done = subprocess.run(
        [str(kustomize()), "build", str(directory)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Rendered(text=done.stdout, objects=tuple(yaml.safe_load_all(done.stdout)))


def rendered_beside(tmp_path: Path, kustomization: str) -> Rendered:
    """What a kustomization of one's own, in a folder beside deploy/, makes of it."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(kustomization)
    return rendered_at(own)


def examples(document: str) -> list[str]:
    """The kustomizations that a document of the repository shows."""
    text = (ROOT / document).read_text()
    return re.findall(r"```yaml\n(# kustomization\.yaml.*?)```", text, re.DOTALL)


def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (GOLDEN / f"{name}.yaml").write_text(rendered(name).text)


if __name__ == "__main__":
    main()
