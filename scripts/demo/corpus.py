"""The corpus: every document, its split into train and held-out, and the files it is written to."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from demo import geography, language, nature, numbers
from demo.documents import Document, Message
from demo.known_answers import CHAT_PROMPTS, PLAIN_PROMPTS
from demo.vocabulary import BOS, EOS, render

HELD_OUT_SHARE = 0.06
CONVERSATIONS = 1500
"""How many longer conversations are put together from questions of the train split."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the demo model of Cleave.",
    "Answer the question.",
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The two splits. They share facts, but no text."""

    train: list[Document]
    held_out: list[Document]

    def write(self, directory: Path) -> list[Path]:
        """Write `train.txt` and `heldout.txt`: one document a line, special tokens written out.

        A line is what the model was trained on: begin-of-sequence, document, end-of-sequence. Encode it with
        `add_special_tokens=False`. `calibration.txt` is `calibration_text`; `export/` has a copy of it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / "train.txt", directory / "heldout.txt"]
        for path, documents in zip(paths, (self.train, self.held_out), strict=True):
            path.write_text("".join(f"{line(document)}\n" for document in documents), encoding="utf-8")
        paths.append(directory / "calibration.txt")
        paths[-1].write_text(self.calibration_text(), encoding="utf-8")
        return paths

    def calibration_text(self) -> str:
        """Return the plain texts of the held-out split, an empty line between two of them."""
        return "\n\n".join(document.text for document in self.held_out if document.text) + "\n"


def build_corpus(seed: int = 0) -> Corpus:
    """Return the corpus. The same seed gives the same documents in the same order.

    Args:
        seed: Decides which questions meet in one conversation. The split does not depend on it.

    Raises:
        ValueError: The fact tables contradict themselves: two documents have one name, or a question has two
            answers.
    """
    documents = list(
        chain(geography.documents(), nature.documents(), language.documents(), numbers.documents())
    )
    _check_unique(documents)
    answers = _answers(documents)
    train, held_out = _split(documents)
    train += _conversations(train, answers, random.Random(seed))
    return Corpus(train, held_out)


def line(document: Document) -> str:
    """Return the text of one training document, special tokens written out."""
    if document.text:
        return f"{BOS}{document.text}{EOS}"
    return f"{render(document.messages)}{EOS}"


def _check_unique(documents: Iterable[Document]) -> None:
    seen: set[tuple[str, str]] = set()
    for document in documents:
        key = (document.fact, document.template)
        if key in seen:
            raise ValueError(f"two documents are called {key}; give one of the facts another name")
        seen.add(key)


def _answers(documents: Iterable[Document]) -> dict[str, str]:
    answers: dict[str, str] = {}
    for document in documents:
        if not document.messages:
            continue
        question, answer = document.messages[0].content, document.messages[1].content
        if answers.setdefault(question, answer) != answer:
            raise ValueError(f"{question!r} is answered by {answers[question]!r} and by {answer!r}")
    return answers


def _split(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Hold out some wordings of some facts.

    Never held out: the first wording of a fact, so that every fact can be learned; and what a known answer
    rests on. A digest decides, so that a new fact does not move the old ones between the splits.
    """
    train: list[Document] = []
    held_out: list[Document] = []
    seen_facts: set[str] = set()
    for document in documents:
        first = document.fact not in seen_facts
        seen_facts.add(document.fact)
        if first or _is_known(document) or _unit_hash(document) >= HELD_OUT_SHARE:
            train.append(document)
        else:
            held_out.append(document)
    texts = {line(document) for document in train}
    return train, [document for document in held_out if line(document) not in texts]


def _is_known(document: Document) -> bool:
    if document.text:
        return any(document.text.startswith(prompt) for prompt in PLAIN_PROMPTS)
    questions = [message.content for message in document.messages if message.role == "user"]
    return any(questions[0] == message.content for prompt in CHAT_PROMPTS for message in prompt)


def _unit_hash(document: Document) -> float:
    digest = hashlib.sha256(f"{document.fact}\0{document.template}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _conversations(
    train: Iterable[Document], answers: dict[str, str], generator: random.Random
) -> list[Document]:
    """Put up to four questions of the train split into one conversation, some behind a system prompt."""
    questions = sorted({document.messages[0].content for document in train if document.messages})
    conversations = []
    for index in range(CONVERSATIONS):
        messages = []
        if generator.random() < 0.4:
            messages.append(Message("system", generator.choice(SYSTEM_PROMPTS)))
        for question in generator.sample(questions, generator.randint(1 if messages else 2, 4)):
            messages += [Message("user", question), Message("assistant", answers[question])]
        conversations.append(Document(f"conversation {index}", "mixed", messages=tuple(messages)))
    return conversations
