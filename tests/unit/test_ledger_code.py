# SPDX-License-Identifier: Apache-2.0
"""The ledger's BPF text as an ordinary program: the order of its steps, and rare failures.

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
    """The program, compiled with the package's BPF text and without kernel headers."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    require("kernel", None if compiler else "there is no C compiler: install gcc")
    assert compiler is not None
    directory = tmp_path_factory.mktemp("ledger_code")
    header = directory / "uapi/linux/ptrace.h"
    header.parent.mkdir(parents=True)
    header.touch()
    built = directory / "ledger_code"
    with resources.as_file(resources.files("ebpf")) as text:
        options = (
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-parameter",
            "-Wno-sign-compare",
        )
        where = ("-I", str(text), "-I", str(directory))
        subprocess.run([compiler, *options, *where, "-o", built, SOURCE], check=True)
    return built


def test_each_file_of_the_text_is_included() -> None:
    """The files are included in the order in which BCC receives them."""
    included = re.findall(r'^#include "(\w+\.bpf\.c)"$', SOURCE.read_text(), flags=re.MULTILINE)
    assert tuple(included) == PROGRAM_FILES


def test_each_scenario_is_run(program: Path) -> None:
    """The program has exactly the scenarios that are tested here."""
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(program: Path, scenario: str) -> None:
    """The scenario's name holds, and afterwards no slot is lost or in two places."""
    done = subprocess.run([program, scenario], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
