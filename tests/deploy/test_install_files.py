# SPDX-License-Identifier: Apache-2.0
"""The files for ``kubectl apply -f`` that ``make manifests`` writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import helm_tools
from tests.support.deploy_render import ROOT, Rendered
from tests.support.helm_render import Choice, kustomized
from tests.support.required import require

pytestmark = pytest.mark.timeout(300)
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
IMAGE = f"registry.example:5000/team/hvprobe@{DIGEST}"
VARIANTS = ("privileged", "capabilities", "openshift")
MONITORING = {"PodMonitor", "PrometheusRule"}


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("helm", helm_tools.missing())


def written(
    output: Path, image: str = IMAGE, *words: str, kubectl: Path | str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    command: list[str | Path] = [sys.executable, ROOT / "scripts/manifests.py", image, *words]
    command += ["--output", output, "--kubectl", kubectl or helm_tools.kubectl()]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all files."""
    folder = tmp_path_factory.mktemp("dist")
    done = written(folder)
    assert done.returncode == 0, done.stderr
    return folder


def objects(file: Path) -> Rendered:
    text = file.read_text()
    return Rendered(text=text, objects=tuple(yaml.safe_load_all(text)))


def test_writes_a_file_for_each_variant(files: Path) -> None:
    """There is one with and one without monitoring for each, and nothing else."""
    expected = {
        f"install-{variant}{more}.yaml" for variant in VARIANTS for more in ("", "-monitoring")
    }
    assert {file.name for file in files.iterdir()} == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_holds_what_the_overlay_holds(variant: str, files: Path, tmp_path: Path) -> None:
    """The file is the overlay with this image, with or without prometheus-operator's objects."""
    image = {"name": "hvprobe", "newName": IMAGE.partition("@")[0], "digest": DIGEST}
    choice = Choice(values={}, resources=(f"overlays/{variant}",), more={"images": [image]})
    expected = kustomized(tmp_path, choice.kustomization).objects
    assert objects(files / f"install-{variant}-monitoring.yaml").objects == expected
    assert objects(files / f"install-{variant}.yaml").objects == tuple(
        found for found in expected if found["kind"] not in MONITORING
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_can_be_applied_from_the_top(variant: str, files: Path) -> None:
    """The Namespace is the first object, every namespaced one is in it, and the image is pinned."""
    made = objects(files / f"install-{variant}-monitoring.yaml")
    assert made.objects[0]["kind"] == "Namespace"
    assert {found["metadata"].get("namespace", "hvprobe") for found in made.objects} == {"hvprobe"}
    assert made.container["image"] == IMAGE
    assert made.text.startswith("# hvprobe ")


def test_writes_the_same_bytes_again(files: Path, tmp_path: Path) -> None:
    """Neither time nor folder is in the files."""
    again = tmp_path / "elsewhere"
    assert written(again).returncode == 0
    for file in files.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    "image", ["registry.example/hvprobe:0.1.0", "hvprobe", "hvprobe@sha256:12", "a b@" + DIGEST]
)
def test_refuses_an_image_without_digest(image: str, tmp_path: Path) -> None:
    """One line says what is wanted, and nothing is written."""
    done = written(tmp_path / "dist", image)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"manifests: the image {image!r} is not NAME@sha256:DIGEST")
    assert not (tmp_path / "dist").exists()


def test_accepts_a_tag_on_demand(tmp_path: Path) -> None:
    """With --allow-tag a tag is taken as it is, and a name alone is still refused."""
    image = "registry.example/hvprobe:0.1.0"
    assert written(tmp_path / "dist", image, "--allow-tag").returncode == 0
    assert objects(tmp_path / "dist/install-privileged.yaml").container["image"] == image
    assert written(tmp_path / "none", "hvprobe", "--allow-tag").returncode == 2


def test_says_that_kubectl_is_missing(tmp_path: Path) -> None:
    """One line names the program, and the flag that names another one."""
    done = written(tmp_path / "dist", kubectl="no-such-kubectl")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "manifests: no-such-kubectl: No such file or directory: name one with --kubectl"
