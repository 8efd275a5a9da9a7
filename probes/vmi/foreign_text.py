# SPDX-License-Identifier: Apache-2.0
"""Text of others in our own errors and log lines. Pure.

What a terminal, a page or a metric's label may hold is another question, and each of these answers
it itself (terminal_text.py, page.py, exposition.py).
"""


def one_line(text: str, *, longest: int = 300) -> str:
    """Foreign text fit for one line: printable, blanks joined, cut after so many characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= longest else f"{line[:longest]}..."
