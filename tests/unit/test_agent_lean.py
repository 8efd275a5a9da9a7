# SPDX-License-Identifier: Apache-2.0
"""The agent stays for weeks: what it does not need is not in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOLD_WHEN_SERVING = """
import gc, json, sys
from ebpf import programs
from probes.command import agent
from probes.command import cli

programs._MAIN = f"import sys; sys.path.insert(0, {sys.argv[2]!r}){programs._MAIN}"

async def serve(settings, collector):
    collector.refresh()
    print(json.dumps({"modules": sorted(sys.modules), "frozen": gc.get_freeze_count()}))

agent._serve = serve
sys.exit(cli.main(["agent", "--standalone", "--proc", sys.argv[1]]))
"""
TOLD_BY_A_LIGHT_COMMAND = """
import atexit, json, sys
from probes.command import cli

atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
sys.exit(cli.main(sys.argv[1:]))
"""
COSTLY = {"asyncio", "ssl", "h11", "psutil", "prometheus_client", "rich", "urllib3", "yaml"}
TABLES = {"ebpf.counters", "ebpf.hooks", "ebpf.ledger", "ebpf.uapi"}
"""Pure data that the table of hypervisors, the choices of ``--type``, is made of."""
NEEDLESS = {
    "bcc": "its compiler ends with the process that loads the programs",
    "rich": "for people",
    "jsonschema": "for tests",
    "kubernetes": "standalone",
    "urllib3": "standalone",
    "probes.command.show": "another command",
    "ebpf.exit_reasons.session": "another command",
}


def test_a_serving_agent_holds_only_what_it_needs(tmp_path: Path, proc: Path) -> None:
    """Nothing costly that is another command's; what stays for ever is kept from the collector."""
    (tmp_path / "bcc.py").write_text('"""Body-centred cubic."""\n')
    done = subprocess.run(
        [sys.executable, "-c", TOLD_WHEN_SERVING, str(proc), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
        text=True,
    )
    told = json.loads(done.stdout)
    assert {"asyncio", "probes.serve.endpoints"} <= set(told["modules"])
    assert set(told["modules"]) & NEEDLESS.keys() == set()
    assert told["frozen"] > len(told["modules"])


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["completion", "bash"], 0), (["watch"], 2)]
)
def test_a_command_that_reads_nothing_is_light(arguments: list[str], code: int) -> None:
    """The version, a completion script and a wrong usage need no server, no TLS and no client."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD_BY_A_LIGHT_COMMAND, *arguments],
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
    assert {name for name in modules if name.startswith(("ebpf.", "probes.serve.http."))} <= {
        "probes.serve.http.listen",
        *TABLES,
    }
