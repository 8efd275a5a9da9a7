# SPDX-License-Identifier: Apache-2.0
"""The agent, which runs for weeks, does not keep modules in memory that it does not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRINT_WHEN_SERVING = """
import gc, json, sys
from ebpf import loader_process
from probes.command import agent
from probes.command import cli

loader_process._MAIN = f"import sys; sys.path.insert(0, {sys.argv[2]!r}){loader_process._MAIN}"

async def serve(settings, refresh):
    refresh()
    print(json.dumps({"modules": sorted(sys.modules), "frozen": gc.get_freeze_count()}))

agent._serve = serve
sys.exit(cli.main(["agent", "--standalone", "--proc", sys.argv[1]]))
"""
PRINT_AT_EXIT = """
import atexit, json, sys
from probes.command import cli

atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
sys.exit(cli.main(sys.argv[1:]))
"""
COSTLY = {
    "asyncio",
    "ssl",
    "jinja2",
    "psutil",
    "prometheus_client",
    "rich",
    "textual",
    "tornado",
    "urllib3",
    "yaml",
}
TABLES = {
    *("ebpf.confinement", "ebpf.counters", "ebpf.hook_status", "ebpf.hooks", "ebpf.ledger"),
    "ebpf.uapi",
}
"""Pure data behind the table of hypervisors, from which ``--type`` takes its choices."""
UNNECESSARY = {
    "bcc": "its compiler ends with the process that loads the programs",
    "rich": "only the live view and the doctor use it",
    "jinja2": "only the page uses it, and imports it when it is requested",
    "jsonschema": "only tests use it",
    "kubernetes": "a standalone agent has no API server",
    "msgspec": "a standalone agent has no API server",
    "urllib3": "a standalone agent has no API server",
    "textual": "only the live view on a screen uses it",
    "probes.command.show": "another command uses it",
    "shtab": "only the command that prints a completion script uses it",
    "ebpf.exit_reasons.session": "another command uses it",
}


def test_a_serving_agent_holds_only_what_it_needs(tmp_path: Path, proc: Path) -> None:
    """A serving agent has no modules of other commands, and gc ignores its long-lived objects."""
    (tmp_path / "bcc.py").write_text('"""Body-centred cubic."""\n')
    done = subprocess.run(
        [sys.executable, "-c", PRINT_WHEN_SERVING, str(proc), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    )
    loaded = json.loads(done.stdout)
    assert {"asyncio", "probes.serve.endpoints"} <= set(loaded["modules"])
    assert set(loaded["modules"]) & UNNECESSARY.keys() == set()
    assert loaded["frozen"] > len(loaded["modules"])


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["completion", "bash"], 0), (["watch"], 2)]
)
def test_a_command_that_reads_nothing_is_light(arguments: list[str], code: int) -> None:
    """The version, a completion script and wrong usage import no server, TLS or client modules."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_AT_EXIT, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == code
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "probes.command.settings" in modules
    assert modules & COSTLY == set()
    assert {name for name in modules if name.startswith(("ebpf.", "probes.serve."))} <= {
        "probes.serve.listen",
        *TABLES,
    }
