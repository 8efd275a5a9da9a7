# SPDX-License-Identifier: Apache-2.0
"""Reduces this machine's pip configuration to what says how to reach a package index.

    python scripts/pip_config.py                   # print it as a pip.conf
    python scripts/pip_config.py --certificates    # print the file of certificates that pip trusts

The image build sees none of this machine's files, so an option that names one (constraint,
find-links, an index in a directory) makes pip fail there. The locks leave the machine as well, and
what lies on this machine's disk must not decide what is in them. All levels count:
/etc/pip.conf, /etc/xdg, the user's file, the environment's file, PIP_CONFIG_FILE, PIP_* variables.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

INDEXES = frozenset({"index-url", "extra-index-url"})
"""Options whose values are addresses, separated by white space; an address may be a directory."""
REACHING = INDEXES | {"proxy", "trusted-host", "timeout", "retries"}
ALIASES = {"pypi-url": "index-url", "default-timeout": "timeout"}
UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "proxy": "ALL_PROXY",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
    "cert": "SSL_CERT_FILE",
}
"""The variable by which uv, which does not read pip's configuration, takes each of these."""
UV_KEPT = frozenset({"UV_CACHE_DIR", "UV_DEFAULT_INDEX", "UV_INDEX"})
"""Variables of uv itself that are obeyed, because they say where it reaches and keeps packages."""
SECTIONS = ("global", "install", ":env:")
"""The ones that `pip install` obeys, the strongest last; :env: is the PIP_* variables."""
_LINE = re.compile(r"(?P<section>[^.=]+)\.(?P<option>[a-z-]+)=(?P<value>['\"].*)")


def main() -> int:
    """The exit status: 1 when pip cannot read its own configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--certificates", action="store_true", help="print a path, or nothing")
    certificates = parser.parse_args().certificates
    try:
        options = effective(listed())
    except subprocess.CalledProcessError as err:
        print(
            f"pip config list: {reason(err.stderr)}: correct pip's configuration", file=sys.stderr
        )
        return 1
    if certificates:
        print(options.get("cert", ""))
    else:
        print("[global]", *(f"{name} = {value}" for name, value in reaching(options)), sep="\n")
    return 0


def listed() -> str:
    """What `pip config list` prints; nothing where this interpreter has no pip.

    Raises CalledProcessError when pip refuses its configuration.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-m", "pip", "config", "list"],
        # A configuration that makes pip quiet would hide itself.
        env={**os.environ, "PIP_QUIET": "0"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "No module named pip" not in done.stderr:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout


def effective(listing: str) -> dict[str, str]:
    """Value by option as `pip install` takes them from lines of SECTION.OPTION='VALUE'."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        matched = _LINE.fullmatch(line)
        if matched and matched["section"] in found:
            # pip lists a value as Python writes it. One of several lines becomes one of one line.
            value = " ".join(ast.literal_eval(matched["value"]).split())
            if value:  # pip ignores an option without a value
                found[matched["section"]][matched["option"]] = value
    return {
        ALIASES.get(option, option): value
        for section in SECTIONS
        for option, value in found[section].items()
    }


def reaching(options: Mapping[str, str]) -> list[tuple[str, str]]:
    """The options, in the order of names, that are as good on another machine of this network."""
    reduced = []
    for name in sorted(REACHING & options.keys()):
        words = options[name].split()
        if name in INDEXES:
            words = [word for word in words if urlsplit(word).scheme.lower() in {"http", "https"}]
        if words:
            reduced.append((name, " ".join(words)))
    return reduced


def uv_environment(options: Mapping[str, str]) -> dict[str, str]:
    """Environment variables under which uv, run on this machine, reaches the index as pip does."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    kept = {name: os.environ[name] for name in UV_KEPT & os.environ.keys()}
    kept["UV_NO_CONFIG"] = "1"
    named = {"cert": options.get("cert", ""), **dict(reaching(options))}
    return {**others, **kept, **{UV[name]: value for name, value in named.items() if value}}


def reason(stderr: str) -> str:
    """pip's own words as one line."""
    lines = [line.strip().rstrip(".") for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line) or "it says nothing"


if __name__ == "__main__":
    sys.exit(main())
