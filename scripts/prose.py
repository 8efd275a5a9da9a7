# SPDX-License-Identifier: Apache-2.0
"""Finds words that this project does not use, and suggests what to write instead.

The words and their replacements are in scripts/prose_words.txt.

Reads prose only: comments and strings of Python, comments of C, Markdown without code, and the
complete text of shell, YAML, TOML, Makefile and Dockerfile. Text in backticks is a quotation and is
skipped, within a paragraph. A phrase is found across a line break.

Prints one line for each finding, ``file:line: word: say …``, and exits with 1 if there is any.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = ROOT / "scripts/prose_words.txt"

FOLDERS = (
    *(".ci", ".github", "bench", "deploy", "docs", "ebpf"),
    *("mutants", "probes", "scripts", "tests", "vmtest"),
)
"""Read with all folders below them; of the root itself, its files."""
NOT_PROSE = ("tests/golden", "tests/fixtures")
"""Stored outputs and captured trees."""
PLAIN_SUFFIXES = frozenset({".sh", ".yaml", ".yml", ".toml"})
PLAIN_NAMES = frozenset({"Makefile", "Dockerfile", "run", "CODEOWNERS"})

_CODE = "\0"
"""Stands for a character that is not prose. It is no white space, so no phrase goes across code."""
_STRINGS = frozenset(
    getattr(tokenize, name)
    for name in ("STRING", "FSTRING_MIDDLE", "TSTRING_MIDDLE")
    if hasattr(tokenize, name)
)
_FENCE = re.compile(r"^([ \t]*)(```|~~~).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"(`+)(?:(?!\n\s*\n)[^`])+?\1")
_C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_MARKER = re.compile(r"^([ \t]*)(?:#+|\*|//|>)(?=\s)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word or phrase that prose does not use."""

    text: str
    say: str
    """What to write instead."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the phrase as complete words, in any case and across a line break."""
        words = r"\s+".join(re.escape(word) for word in self.text.split())
        return re.compile(rf"(?<![\w-]){words}(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """One use of such a word."""

    file: str
    """Path below the root."""
    line: int
    """The first line is 1."""
    word: str
    say: str

    def __str__(self) -> str:
        """The line that is printed."""
        return f"{self.file}:{self.line}: {self.word}: say {self.say}"


def entries(text: str) -> Iterator[tuple[str, str]]:
    """The ``name: value`` lines of a list. Empty lines and lines that begin with # are skipped.

    Raises ValueError when a line has another form.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition(": ")
        if not separator or not name.strip() or not value.strip():
            raise ValueError(f"line {number} is not of the form 'name: value': {line}")
        yield name.strip(), value.strip()


def words(path: Path = WORDS) -> list[Word]:
    """The list of words. Raises OSError when it cannot be read, ValueError when it is malformed."""
    return [Word(text=text, say=say) for text, say in entries(path.read_text())]


def _blank(text: str) -> str:
    """The same text with each character that is no white space marked as code."""
    return re.sub(r"\S", _CODE, text)


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """The text with each match marked as code."""
    return pattern.sub(lambda match: _blank(match[0]), text)


def _kept(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with everything outside the spans, which are in order, marked as code."""
    parts = []
    end = 0
    for first, last in spans:
        parts += [_blank(text[end:first]), text[first:last]]
        end = last
    return "".join([*parts, _blank(text[end:])])


def _python_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the comments and strings of a Python text are."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or token.type in _STRINGS:
            first = starts[token.start[0] - 1] + token.start[1]
            yield first, starts[token.end[0] - 1] + token.end[1]


def prose(name: str, text: str) -> str | None:
    """The prose of a file, at the same offsets; None: files of this kind have none.

    Raises tokenize.TokenError or SyntaxError for a Python text that is none.
    """
    path = Path(name)
    match path.suffix:
        case ".py":
            text = _kept(text, _python_spans(text))
        case ".c" | ".h":
            text = _kept(text, (match.span() for match in _C_COMMENT.finditer(text)))
        case ".md":
            text = _blanked(_FENCE, text)
        case suffix if suffix not in PLAIN_SUFFIXES and path.name not in PLAIN_NAMES:
            return None
    text = _MARKER.sub(lambda match: " " * len(match[0]), text)
    return _blanked(_QUOTED, text)


def findings(name: str, text: str, of: Iterable[Word]) -> list[Finding]:
    """Each use of the words in one file, by line."""
    readable = prose(name, text)
    if readable is None:
        return []
    return sorted(
        Finding(
            file=name,
            line=readable.count("\n", 0, match.start()) + 1,
            word=word.text,
            say=word.say,
        )
        for word in of
        for match in word.pattern.finditer(readable)
    )


def files(root: Path) -> Iterator[str]:
    """The paths below root of the files to read, in order."""
    found = [path for path in root.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [path for path in (root / folder).rglob("*") if path.is_file()]
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        if not name.startswith(NOT_PROSE) and "__pycache__" not in path.parts:
            yield name


def check(root: Path, of: Iterable[Word]) -> list[Finding]:
    """Each use of the words in the files below root, by file and line."""
    of = list(of)
    return [
        finding
        for name in files(root)
        if prose(name, "") is not None
        for finding in findings(name, (root / name).read_text(), of)
    ]


def main() -> int:
    """Run the command; its exit code."""
    found = check(ROOT, words())
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
