# SPDX-License-Identifier: Apache-2.0
"""Holds the style of the page at ``/``. Pure data; its hash is in the Content-Security-Policy.

Tables become cards on a narrow screen. Everything that a colour expresses is also said in words.
"""

from collections.abc import Mapping

from probes.judge.reasons import Outcome

CLASSES: Mapping[Outcome, str] = {
    Outcome.GOOD: "good",
    Outcome.DEGRADED: "warn",
    Outcome.BAD: "bad",
}
"""CSS classes by emphasis."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --dim: #5c6670; --paper: #f6f7f9;
  --card: #fff; --line: #d9dee3; --good: #0a6b35; --warn: #8a5200; --bad: #b3151f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --dim: #9aa5b0; --paper: #14171a; --card: #1d2125;
    --line: #353c43; --good: #5fd08a; --warn: #f0b45a; --bad: #ff8289; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.5rem; }
h2 { margin: 0 0 .5rem; font-size: 1.1rem; }
p { margin: .25rem 0; }
.dim { color: var(--dim); font-weight: normal; }
.good { color: var(--good); }
.warn { color: var(--warn); }
.bad { color: var(--bad); }
.alarm { margin: 1rem 0; padding: .75rem 1rem; border: 2px solid var(--bad); border-radius: .5rem;
  background: var(--card); }
section, .tiles li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
section { margin: 1rem 0; padding: 1rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1rem 0; padding: 0;
  list-style: none; }
.tiles li { padding: .5rem 1rem; }
.tiles b { font-size: 1.5rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; border-top: 1px solid var(--line); text-align: start;
  vertical-align: baseline; overflow: clip; }
thead th { border-top: 0; color: var(--dim); font-weight: normal; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 9rem; }
td b, td .good, td .warn { white-space: nowrap; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .75rem;
  margin: 0 0 1rem; }
dt { color: var(--dim); font-size: .9rem; }
dd { margin: 0; }
footer { display: flex; gap: 1rem; }
a { color: inherit; }
@media (max-width: 45rem) {
  thead { display: none; }
  table, tbody, tr, th, td { display: block; }
  tr { padding: .5rem 0; border-top: 1px solid var(--line); }
  th, td { padding: 0; border: 0; }
  td[data-of]::before { content: attr(data-of) ": "; color: var(--dim); }
  td:empty { display: none; }
}
"""
