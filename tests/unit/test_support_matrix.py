# SPDX-License-Identifier: Apache-2.0
"""What docs/kernels.md takes from the reports of a kernel's tests."""

import json
import os
from pathlib import Path

from vmtest.support_matrix import read

FIRST = """\
<testsuites><testsuite>
<testcase classname="tests.kernel.test_life" name="test_exec"><failure/></testcase>
<testcase classname="tests.kernel.test_life" name="test_exit"><properties>
<property name="verdict" value="kvm"/></properties></testcase>
</testsuite></testsuites>
"""
AGAIN = """\
<testsuites><testsuite>
<testcase classname="tests.kernel.test_life" name="test_exec"/>
<testcase classname="tests.kernel.test_life" name="test_fork"><skipped/></testcase>
</testsuite></testsuites>
"""


def test_the_last_result_of_each_test_counts(tmp_path: Path) -> None:
    """Tests that ran again replace their earlier results, whatever the reports are called."""
    (tmp_path / "facts.json").write_text(json.dumps({"kernel": "6.1"}))
    for name, report, written_s in (("junit.xml", FIRST, 2), ("junit-again.xml", AGAIN, 3)):
        (tmp_path / name).write_text(report)
        os.utime(tmp_path / name, (written_s, written_s))
    kernel = read(tmp_path)
    assert kernel.outcomes == {
        "test_life::test_exec": "ok",
        "test_life::test_exit": "ok",
        "test_life::test_fork": "-",
    }
    assert kernel.properties["test_life::test_exit"] == {"verdict": "kvm"}
    os.utime(tmp_path / "junit.xml", (4, 4))
    assert read(tmp_path).outcomes["test_life::test_exec"] == "FAIL"
