"""The repository's documents, and the code, links and headings in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from command import REPOSITORY
from markdown_it import MarkdownIt
from markdown_it.token import Token

_PROMPT = "$ "
_COMMENT = re.compile(r"(^|\s)#\s.*$")


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        """As the repository has it."""
        return self.path.relative_to(REPOSITORY).as_posix()

    def links(self) -> Iterator[str]:
        """Targets of links and pictures."""
        for token in self._inline():
            for name in ("href", "src"):
                if token.attrGet(name) is not None:
                    yield str(token.attrGet(name))

    def anchors(self) -> set[str]:
        """What a link may name behind `#`, as GitHub makes it of the headings."""
        tokens = _tokens(self.path)
        titles = [
            tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    def fences(self, language: str) -> list[str]:
        """The blocks of code that say that they are in a language; "": in none."""
        return [
            token.content
            for token in _tokens(self.path)
            if token.type == "fence" and token.info.strip() == language
        ]

    def phrases(self) -> Iterator[str]:
        """The code within sentences and tables."""
        return (token.content for token in self._inline() if token.type == "code_inline")

    def shell(self) -> Iterator[list[str]]:
        """The commands of blocks of code, a list of words each.

        A block that shows what commands answer has them behind `$`.
        """
        for block in self.fences(""):
            lines = block.replace("\\\n", " ").splitlines()
            if any(line.startswith(_PROMPT) for line in lines):
                lines = [line.removeprefix(_PROMPT) for line in lines if line.startswith(_PROMPT)]
            for line in lines:
                yield from commands(line)

    def _inline(self) -> Iterator[Token]:
        return (part for token in _tokens(self.path) for part in token.children or ())


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line, without comments, environment and what is behind a pipe or `&&`."""
    try:
        words = shlex.split(_COMMENT.sub("", line))
    except ValueError:  # an apostrophe: it is no command
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "||", "|", "..."):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)


def documents() -> list[Document]:
    """All of them, README first."""
    paths = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    paths += sorted((REPOSITORY / "docs").glob("*.md"))
    return [Document(path) for path in paths]


@cache
def _tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8"))
