# SPDX-License-Identifier: Apache-2.0
"""The ledger's BPF text, run as an ordinary program: its order of steps, and its rare failures.

The scenarios are in ledger_code.c.
"""

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from ebpf.hooks import PROGRAM_FILES
from tests.support.required import require

SOURCE = Path(__file__).with_name("ledger_code.c")
SCENARIOS = re.findall(r"SCENARIO\((\w+)\)", SOURCE.read_text())[1:]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled with the BPF text of the package, and with no header of a kernel."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    require("kernel", None if compiler else "there is no C compiler: install gcc")
    assert compiler is not None
    directory = tmp_path_factory.mktemp("ledger_code")
    header = directory / "uapi/linux/ptrace.h"
    header.parent.mkdir(parents=True)
    header.touch()
    built = directory / "ledger_code"
    with resources.as_file(resources.files("ebpf")) as text:
        options = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-sign-compare")
        where = ("-I", str(text), "-I", str(directory))
        subprocess.run([compiler, *options, *where, "-o", built, SOURCE], check=True)
    return built


def test_each_file_of_the_text_is_there() -> None:
    """In the order in which BCC gets them."""
    included = re.findall(r'^#include "(\w+\.bpf\.c)"$', SOURCE.read_text(), flags=re.MULTILINE)
    assert tuple(included) == PROGRAM_FILES


def test_each_scenario_is_run(program: Path) -> None:
    """The names here are those of the program."""
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(program: Path, scenario: str) -> None:
    """What the scenario's name says holds, and no slot is lost or in two places after it."""
    done = subprocess.run([program, scenario], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
