# SPDX-License-Identifier: Apache-2.0
"""Makes foreign text fit for hvprobe's own errors and log lines. Pure.

What a terminal, a page or a metric's label may hold is a different question, which each of them
answers itself (terminal_text.py, page_templates.py, exposition.py).
"""


def one_line(text: str, *, longest: int = 300) -> str:
    """Make foreign text fit for one line: printable, with blanks joined, cut to ``longest``."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def cut_bytes(text: str, longest: int) -> str:
    """Cut text to ``longest`` bytes in UTF-8, at the border of a character."""
    encoded = text.encode()
    if len(encoded) <= longest:
        return text
    return encoded[: max(0, longest - 3)].decode(errors="ignore") + "..."
