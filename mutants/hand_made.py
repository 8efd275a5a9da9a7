# SPDX-License-Identifier: Apache-2.0
"""Describes a mutant that is made by hand."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HandMade:
    """One exchange of a text that stands in the file exactly once."""

    file: str
    text: str
    replacement: str
    test: str
    """The test that has to fail, as pytest names it."""
    breaks: str
    """What goes wrong, in a few words."""
