"""A document of the corpus, and the few shapes in which facts are written down."""

from collections.abc import Iterator
from dataclasses import dataclass

Role = str
"""`system`, `user` or `assistant`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One training document: either plain text or a conversation.

    Attributes:
        fact: What the document says, whatever its wording. Documents that share a fact are told apart by
            `template`; the held-out split takes some wordings of a fact and leaves the others.
        template: The wording. `(fact, template)` is unique in the corpus.
        text: Plain text, or empty for a conversation.
        messages: The turns of a conversation, ending with an assistant's, or empty for plain text.
    """

    fact: str
    template: str
    text: str = ""
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.messages):
            raise ValueError(f"document {self.fact}/{self.template}: give either text or messages, not both")
        contents = (self.text, *(message.content for message in self.messages))
        if any("\n" in content or "<|" in content for content in contents):
            # A corpus file holds one document a line, with special tokens written out.
            raise ValueError(f"document {self.fact}/{self.template}: line breaks and '<|' are not allowed")


def statement(fact: str, template: str, text: str) -> Document:
    """Return a plain-text document."""
    return Document(fact, template, text=text)


def conversation(fact: str, template: str, *turns: str) -> Document:
    """Return a conversation whose turns alternate between user and assistant."""
    if len(turns) % 2:
        raise ValueError(f"document {fact}/{template}: a conversation ends with the assistant's turn")
    roles = ("user", "assistant")
    return Document(fact, template, messages=tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)))


def asked(fact: str, answer: str, *questions: str) -> Iterator[Document]:
    """Yield the wordings in which `questions` are all answered by `answer`.

    Each question becomes a conversation; the first is also written as plain text.
    """
    for index, question in enumerate(questions):
        yield conversation(fact, f"asked-{index}", question, answer)
    yield statement(fact, "question-and-answer", f"Question: {questions[0]} Answer: {answer}")


def rows(table: str, columns: int) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a `|`-separated table, one row a line, blank lines ignored.

    Raises:
        ValueError: A row does not have `columns` cells.
    """
    for line in table.strip().splitlines():
        if not line.strip():
            continue
        cells = tuple(cell.strip() for cell in line.split("|"))
        if len(cells) != columns:
            raise ValueError(
                f"a fact table wants {columns} cells in each row; {line.strip()!r} has {len(cells)}"
            )
        yield cells


def capitalised(text: str) -> str:
    """Return `text` with its first letter upper-case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Return `text` as a sentence: capitalised, and closed by exactly one full stop."""
    return capitalised(text) if text.endswith(".") else f"{capitalised(text)}."


def with_article(noun: str) -> str:
    """Return `noun` behind its indefinite article, chosen by its first letter."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listed(items: list[str]) -> str:
    """Return `items` as a comma-separated list closed by a full stop."""
    return ", ".join(items) + "."
